//! The check finds what it is for: one sound run, and what becomes of it when something is forged.

use bytes::Bytes;
use img_proto::{Answer, Call, LeaseTerms, Refusal, Reply, Request, Standing};
use img_records::{LogKind, Receipt, Roster, Signed, SigningSecret, commit_id};
use img_types::{
    DeviceId, Epoch, Incarnation, Instance, LeaseMode, LogPosition, RequestId, Seq, Token,
    WallMillis,
};
use tempfile::TempDir;

use super::*;
use crate::journal::{self, Journal, Line, Nanos};
use crate::papers::{Device, Draft, FOUNDER};

const STEP: Nanos = 1_000_000_000;
const INCARNATION: Incarnation = Incarnation::from_bytes([1; 32]);

/// A run as it is being made up.
struct Scene {
    roster: Roster,
    key: SigningSecret,
    log: Vec<Logged>,
    history: Vec<Entry>,
    lines: BTreeMap<u32, Vec<Line>>,
    /// When a second daemon of device 2 said Hello.
    newer: Option<Nanos>,
    home_killed: Vec<Nanos>,
    time: Nanos,
}

impl Scene {
    /// Device 1 takes the image, commits and gives it back; device 2 takes it and commits.
    fn sound() -> Self {
        let (roster, _) = papers::roster(3).unwrap();
        let mut scene = Self {
            roster,
            key: SigningSecret::from_bytes([7; 32]),
            log: Vec::new(),
            history: Vec::new(),
            lines: BTreeMap::new(),
            newer: None,
            home_killed: Vec::new(),
            time: 0,
        };
        for number in 1..=3 {
            let hello = Line::Hello(0, Instance(1));
            scene.lines.insert(number, vec![hello]);
        }
        scene.acquire(1, 1);
        scene.commit(1, 1);
        scene.release(1, 1);
        scene.acquire(2, 2);
        scene.commit(2, 2);
        scene
    }

    fn standing(&self) -> Standing {
        Standing {
            incarnation: INCARNATION,
            position: LogPosition(self.log.len() as u64),
            root: self
                .log
                .last()
                .map_or(LogEntry::EMPTY_ROOT, |last| last.root),
        }
    }

    fn log(&mut self, kind: LogKind, subject: [u8; 32], device: DeviceId, epoch: u64) {
        let entry = LogEntry {
            kind,
            image: papers::image(0),
            subject,
            device,
            epoch: Epoch(epoch),
            time: WallMillis(0),
        };
        let root = LogEntry::chain(self.standing().root, &entry);
        self.log.push(Logged { entry, root });
    }

    /// A request that was sent now, and its answer a little later.
    fn says(&mut self, number: u32, call: Call, result: Result<Answer, Refusal>) {
        let id = call.mutates().then(|| {
            let count = self.lines[&number].len() as u8;
            RequestId::from_bytes([number as u8 * 50 + count; 32])
        });
        let reply = Reply {
            at: Some(self.standing()),
            result,
        };
        let lines = self.lines.get_mut(&number).unwrap();
        lines.push(Line::Sent(self.time + 1, Request { id, call }));
        lines.push(Line::Answered(self.time + 2, reply));
        self.time += STEP;
    }

    fn acquire(&mut self, number: u32, epoch: u64) {
        let device = Device::of(number);
        let checkout = device.checkout(papers::image(0));
        self.log(LogKind::Grant, *checkout.as_bytes(), device.id(), epoch);
        self.told_granted(number, epoch);
    }

    fn told_granted(&mut self, number: u32, epoch: u64) {
        let image = papers::image(0);
        let call = Call::Acquire {
            image,
            checkout: Device::of(number).checkout(image),
            terms: LeaseTerms {
                ttl_ms: 60_000,
                mode: LeaseMode::Online,
            },
            expect_head: None,
            take_over: false,
        };
        let head = self
            .history
            .last()
            .map(|entry| entry.commit.to_bytes().into());
        let granted = Answer::Granted {
            token: token(epoch),
            ttl_ms: 60_000,
            head,
            current: true,
            trace: None,
        };
        self.says(number, call, Ok(granted));
    }

    fn commit(&mut self, number: u32, epoch: u64) {
        let device = Device::of(number);
        let (image, home) = (papers::image(0), self.roster.home());
        let parent = self.history.last().map(|entry| &entry.commit);
        let seq = Seq(self.history.len() as u64);
        let draft = Draft {
            image,
            seq,
            parent: parent.map(|parent| commit_id(parent, &home)),
            root: papers::root(seq.0).0,
            token: token(epoch),
            clock: WallMillis(0),
        };
        let signed = device.commit(&self.roster, &draft);
        let id = commit_id(&signed, &home);
        self.log(LogKind::Commit, *id.as_bytes(), device.id(), epoch);
        let standing = self.standing();
        let receipt = Receipt {
            incarnation: INCARNATION,
            position: standing.position,
            log_root: standing.root,
            image,
            seq,
            commit: id,
        };
        let receipt = Signed::sign(receipt, &home, &self.key);
        let told: Bytes = receipt.to_bytes().into();
        let commit: Bytes = signed.to_bytes().into();
        let entry = Entry::decode(&commit, &told).unwrap();
        self.history.push(entry);
        self.says(
            number,
            Call::Commit { commit },
            Ok(Answer::Committed { receipt: told }),
        );
    }

    fn release(&mut self, number: u32, epoch: u64) {
        let device = Device::of(number);
        let (image, checkout) = (papers::image(0), device.checkout(papers::image(0)));
        self.log(LogKind::Release, *checkout.as_bytes(), device.id(), epoch);
        let token = token(epoch);
        let call = Call::Release {
            image,
            checkout,
            token,
        };
        self.says(number, call, Ok(Answer::Done));
    }

    fn renew(&mut self, number: u32, epoch: u64, result: Result<Answer, Refusal>) {
        let image = papers::image(0);
        let call = Call::Renew {
            image,
            checkout: Device::of(number).checkout(image),
            token: token(epoch),
            terms: None,
        };
        self.says(number, call, result);
    }

    fn findings(&self) -> Findings {
        let dir: TempDir = tempfile::tempdir().unwrap();
        for number in FOUNDER..=3 {
            std::fs::create_dir_all(journal::folder(dir.path(), number)).unwrap();
        }
        for (number, lines) in &self.lines {
            let journal = Journal::create(&journal::path(dir.path(), *number, 0)).unwrap();
            for line in lines {
                journal.write(line).unwrap();
            }
        }
        if let Some(time) = self.newer {
            let journal = Journal::create(&journal::path(dir.path(), 2, 1)).unwrap();
            journal.write(&Line::Hello(time, Instance(2))).unwrap();
        }
        let evidence = Evidence {
            plan: Plan {
                address: String::new(),
                home_key_hash: [0; 32],
                clients: 3,
                images: 1,
                lapsing: 0,
                calls_each: 0,
                seed: 0,
            },
            dir: dir.path().to_owned(),
            home_key: self.key.public(),
            home_killed: self.home_killed.clone(),
            log: self.log.clone(),
            histories: [(papers::image(0), self.history.clone())].into(),
            home: serde_json::json!({ "problems": [], "commits": self.history.len() }),
        };
        check(&evidence).unwrap()
    }

    fn problems(&self) -> Vec<String> {
        self.findings().problems
    }

    #[track_caller]
    fn finds(&self, what: &str) {
        let problems = self.problems();
        assert!(
            problems.iter().any(|problem| problem.contains(what)),
            "{problems:#?}"
        );
    }
}

fn token(epoch: u64) -> Token {
    Token {
        incarnation: INCARNATION,
        epoch: Epoch(epoch),
    }
}

fn stale(epoch: u64) -> Result<Answer, Refusal> {
    Err(Refusal::TokenStale {
        epoch: Epoch(epoch),
        holder: None,
        mode: None,
    })
}

#[test]
fn a_sound_run_has_no_problem() {
    let mut scene = Scene::sound();
    scene.renew(2, 2, Ok(Answer::Renewed { ttl_ms: 1 }));
    scene.renew(1, 1, stale(2));
    assert_eq!(scene.problems(), Vec::<String>::new());
}

#[test]
fn a_token_for_two_is_found() {
    let mut scene = Scene::sound();
    scene.told_granted(3, 2);
    scene.finds("the token is another device's");
    let mut scene = Scene::sound();
    scene.told_granted(2, 2);
    scene.finds("a token was granted twice");
}

#[test]
fn a_grant_over_a_lease_that_cannot_have_lapsed_is_found() {
    let mut scene = Scene::sound();
    scene.acquire(3, 3);
    scene.finds("granted away before its time");
    let mut scene = Scene::sound();
    scene.time += 60 * STEP;
    scene.acquire(3, 3);
    assert_eq!(scene.problems(), Vec::<String>::new());
}

#[test]
fn a_call_under_a_lapsed_lease_is_counted_unless_the_home_began_anew() {
    let mut scene = Scene::sound();
    scene.commit(2, 2);
    assert_eq!(scene.findings().late, 0);
    scene.time += 60 * STEP;
    scene.commit(2, 2);
    scene.renew(2, 2, Ok(Answer::Renewed { ttl_ms: 60_000 }));
    scene.renew(2, 2, Ok(Answer::Renewed { ttl_ms: 60_000 }));
    let findings = scene.findings();
    assert_eq!(findings.problems, Vec::<String>::new());
    assert_eq!(findings.late, 2);
    scene.home_killed.push(30 * STEP);
    assert_eq!(scene.findings().late, 0);
}

#[test]
fn a_token_that_outlives_its_time_or_ends_before_it_is_found() {
    let mut scene = Scene::sound();
    scene.renew(1, 1, Ok(Answer::Renewed { ttl_ms: 1 }));
    scene.finds("renewed although not current");
    let mut scene = Scene::sound();
    scene.renew(2, 2, stale(2));
    scene.finds("a current token is called stale");
    let mut scene = Scene::sound();
    scene.commit(1, 2);
    scene.finds("a commit by somebody who does not hold the image");
}

#[test]
fn a_commit_that_is_lost_or_forged_is_found() {
    let mut scene = Scene::sound();
    scene.history.pop();
    scene.finds("an acknowledged commit is not in history");
    let mut scene = Scene::sound();
    scene.history.remove(0);
    scene.finds("its number does not follow");
    let mut scene = Scene::sound();
    scene.key = SigningSecret::from_bytes([8; 32]);
    scene.finds("its receipt does not verify");
    let mut scene = Scene::sound();
    // Only a log that was written anew, with the chain put right, has no such commit.
    scene.log.truncate(4);
    scene.finds("its receipt names no place in the log");
}

#[test]
fn a_home_that_went_back_or_tells_two_logs_is_found() {
    let mut scene = Scene::sound();
    let log = scene.log.split_off(4);
    scene.renew(2, 2, Ok(Answer::Renewed { ttl_ms: 1 }));
    scene.log.extend(log);
    scene.finds("the home went back");
    let mut scene = Scene::sound();
    scene.log[2].root = LogEntry::EMPTY_ROOT;
    scene.finds("the chain breaks at 3");
    scene.finds("was told of another log");
}

#[test]
fn a_call_of_an_earlier_daemon_that_was_taken_is_found() {
    let mut scene = Scene::sound();
    scene.renew(2, 2, Err(Refusal::InstanceFenced));
    scene.finds("fenced without a newer daemon");

    let mut scene = Scene::sound();
    scene.newer = Some(scene.time);
    scene.time += STEP;
    scene.renew(2, 2, Ok(Answer::Renewed { ttl_ms: 1 }));
    scene.finds("a call of an earlier daemon was taken");
}

#[test]
fn an_earlier_daemon_that_is_told_what_became_of_its_requests_is_found() {
    let mut scene = Scene::sound();
    let lines = &scene.lines[&2];
    let [_, Line::Sent(_, request), Line::Answered(_, reply), ..] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    let (request, mut reply) = (request.clone(), reply.clone());
    let Ok(Answer::Granted { current, .. }) = &mut reply.result else {
        panic!("{reply:?}");
    };
    *current = false;
    reply.at = Some(scene.standing());
    scene.newer = Some(scene.time);
    let again = [
        Line::Sent(scene.time + STEP, request),
        Line::Answered(scene.time + 2 * STEP, reply),
    ];
    scene.lines.get_mut(&2).unwrap().extend(again);
    scene.finds("a call of an earlier daemon was taken");
    scene.newer = None;
    scene.finds("a current grant is told as over");
}

#[test]
fn a_refusal_without_a_reason_is_found() {
    let mut scene = Scene::sound();
    scene.renew(2, 2, Err(Refusal::Internal("database".to_owned())));
    scene.finds("a refusal without a reason");
}
