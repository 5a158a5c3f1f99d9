//! The program as an operator meets it: its commands, its exit codes, and what `kill -9` leaves.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use bytes::Bytes;
use futures_util::stream;
use img_net::{Connection, TlsIdentity};
use img_proto::{Answer, Call, Class, LeaseTerms, Request};
use img_records::{AnyInvite, FoundingInvite, Roster};
use img_types::{CommitId, ImageId, LeaseMode, ObjectId, RequestId, Token, UploadId};

#[path = "../src/tests/papers.rs"]
mod papers;
#[path = "../src/tests/tree.rs"]
mod tree;

use papers::{Device, Draft, id_of};
use tree::Tree;

const IMAGE: ImageId = ImageId::from_bytes([1; 32]);

fn imghome(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imghome"))
        .args(arguments)
        .output()
        .unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn init(dir: &str) -> FoundingInvite {
    let made = imghome(&["init", dir, "--address", "127.0.0.1:4460", "--json"]);
    assert!(made.status.success(), "{made:?}");
    match json(&made)["invite"].as_str().unwrap().parse() {
        Ok(AnyInvite::Founding(invite)) => invite,
        other => panic!("{other:?}"),
    }
}

/// A served home; the process ends with it.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(dir: &str) -> Self {
        Self::start_with(dir, &[])
    }

    fn start_with(dir: &str, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_imghome"))
            .args(["serve", dir, "--listen", "127.0.0.1:0", "--json"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self {
            child,
            address: said["address"].as_str().unwrap().to_owned(),
        }
    }

    /// Ends the process as a power cut would.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the process to stop, and waits until it has.
    fn terminate(mut self) {
        let id = self.child.id().to_string();
        let began = std::time::Instant::now();
        let asked = Command::new("kill").arg(id).status().unwrap();
        assert!(asked.success());
        assert!(self.child.wait().unwrap().success());
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn connect(served: &Served, invite: &FoundingInvite) -> Connection {
    let identity = TlsIdentity::from_seed(&Device::new(1).tls);
    let hash = invite.home_key_hash;
    img_net::connect(&served.address, hash, &identity)
        .await
        .unwrap()
}

/// Makes a call; nothing if the home went away before it answered.
async fn call(connection: &Connection, call: Call) -> Option<Answer> {
    let mut id = [0; 32];
    getrandom::fill(&mut id).unwrap();
    let id = Some(RequestId::from_bytes(id));
    let reply = connection.call(&Request { id, call }, Class::Control).await;
    reply.ok().map(|reply| reply.result.unwrap())
}

#[test]
fn a_home_is_made_invited_to_and_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("home");
    let home = path.to_str().unwrap();
    let nowhere = imghome(&["serve", home]);
    assert_eq!(nowhere.status.code(), Some(2));
    let first = init(home);
    let again = imghome(&["init", home, "--json"]);
    assert_eq!(again.status.code(), Some(2));
    let told = json(&again);
    assert!(told["message"].as_str().unwrap().contains("empty"));
    assert_eq!(
        (&told["error"], &told["exit_code"]),
        (&"usage".into(), &2.into())
    );
    assert!(told["hint"].is_string());
    let nonsense = imghome(&["init", "--nonsense", "--json"]);
    assert_eq!(json(&nonsense)["error"], "usage");
    assert_eq!(nonsense.status.code(), Some(2));
    let invited = imghome(&["invite", home, "--address", "home.example:9"]);
    let line = String::from_utf8(invited.stdout).unwrap();
    let Ok(AnyInvite::Founding(second)) = line.trim().parse() else {
        panic!("{line}");
    };
    assert_eq!(second.address, "home.example:9");
    assert_eq!(second.home_key_hash, first.home_key_hash);
    let usage = json(&imghome(&["usage", home, "--json"]));
    assert_eq!(usage["objects"], 0);
    let checked = imghome(&["check", home, "--json"]);
    assert!(checked.status.success());
    assert_eq!(json(&checked)["problems"].as_array().unwrap().len(), 0);
    let strange = imghome(&["usage", home, "--db", "mysql:x"]);
    assert_eq!(strange.status.code(), Some(2));
    secret_files(&path);
}

/// Nobody else may read the home's key.
fn secret_files(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path.join("home.key")), 0o600);
    assert_eq!(mode(path), 0o700);
}

/// What the device knows of its one image between two lives of the home.
struct Image {
    roster: Roster,
    token: Token,
    head: Option<(Draft, CommitId)>,
    commits: u64,
}

/// Says Hello and opens the upload session, and asks which of these objects are missing.
async fn begin(
    connection: &Connection,
    device: &Device,
    ids: Vec<ObjectId>,
) -> (UploadId, Vec<u32>) {
    let nonce = device.nonce;
    let hello = Call::Hello { nonce, seen: None };
    call(connection, hello).await.unwrap();
    let checkout = device.checkout;
    let open = call(connection, Call::OpenUpload { checkout }).await;
    let Some(Answer::Upload { upload }) = open else {
        panic!("{open:?}");
    };
    match call(connection, Call::Missing { upload, ids }).await {
        Some(Answer::Missing { positions }) => (upload, positions),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn whatever_was_acknowledged_survives_kill_9_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("home");
    let home = path.to_str().unwrap();
    let invite = init(home);
    let device = Device::new(1);
    let mut served = Served::start(home);
    let mut image = found(&connect(&served, &invite).await, &device, invite.secret).await;
    for round in 0..10u64 {
        let Tree { root, ids, objects } = tree::tree(round, 2, 50);

        // The first life ends somewhere behind an acknowledgement.
        let connection = connect(&served, &invite).await;
        let (upload, missing) = begin(&connection, &device, ids.clone()).await;
        assert_eq!(missing.len(), ids.len());
        let (acks, mut acked) = tokio::sync::watch::channel(0);
        let push = connection.push(upload, stream::iter(objects.clone()), |pushed| {
            acks.send_replace(pushed.objects);
        });
        tokio::select! {
            biased;
            _ = acked.wait_for(|objects| *objects > round * 9) => {}
            _ = push => {}
        }
        served.kill();
        let durable = *acks.borrow();
        assert!(durable > 0);

        // In the second one the rest is sent, and the commit goes out as the process ends.
        served = Served::start(home);
        let connection = connect(&served, &invite).await;
        let (upload, missing) = begin(&connection, &device, ids.clone()).await;
        let places = || missing.iter().map(|place| *place as usize);
        assert!(places().all(|place| place as u64 >= durable));
        let rest: Vec<Bytes> = places().map(|place| objects[place].clone()).collect();
        connection
            .push(upload, stream::iter(rest), |_| {})
            .await
            .unwrap();
        let draft = match &image.head {
            None => Draft::first(IMAGE, root, image.token),
            Some((draft, head)) => draft.after(*head, root, image.token),
        };
        let signed = device.commit(&image.roster, &draft);
        let commit = Call::Commit {
            commit: signed.to_bytes().into(),
        };
        // Sometimes before it arrives, sometimes before it is answered, sometimes after.
        let until = async {
            for _ in 0..round % 4 {
                call(&connection, Call::Images { after: None }).await;
            }
        };
        let answered = tokio::select! {
            biased;
            answered = call(&connection, commit.clone()) => answered,
            () = until => None,
        };

        served.kill();

        // In the third one it is sent again, and is in history once.
        served = Served::start(home);
        let connection = connect(&served, &invite).await;
        begin(&connection, &device, Vec::new()).await;
        let again = call(&connection, commit).await;
        assert!(matches!(again, Some(Answer::Committed { .. })));
        assert!(
            answered.is_none() || answered == again,
            "one receipt for ever"
        );
        image.head = Some((draft, id_of(&signed, image.roster.home())));
        image.commits += 1;
        let log = Call::Log {
            image: IMAGE,
            before: None,
            limit: 100,
        };
        let Some(Answer::Log { commits, .. }) = call(&connection, log).await else {
            panic!("no log");
        };
        assert_eq!(commits.len() as u64, image.commits);
    }
    served.terminate();
    let checked = imghome(&["check", home, "--json"]);
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(json(&checked)["commits"], image.commits);
    assert_eq!(json(&checked)["objects"], image.commits * 103);
}

async fn found(connection: &Connection, device: &Device, secret: [u8; 16]) -> Image {
    let genesis = device.genesis();
    let roster = Roster::found(&genesis).unwrap();
    let genesis = genesis.to_bytes().into();
    let found = call(connection, Call::Found { secret, genesis }).await;
    assert_eq!(found, Some(Answer::Founded));
    begin(connection, device, Vec::new()).await;
    let descriptor = device.descriptor(roster.home(), IMAGE, 1);
    let create = Call::CreateImage {
        descriptor: descriptor.to_bytes().into(),
        checkout: device.checkout,
        terms: LeaseTerms {
            ttl_ms: 600_000,
            mode: LeaseMode::Online,
        },
    };
    let created = call(connection, create).await;
    let Some(Answer::Granted { token, .. }) = created else {
        panic!("{created:?}");
    };
    Image {
        roster,
        token,
        head: None,
        commits: 0,
    }
}

#[tokio::test]
async fn a_home_takes_as_much_as_its_operator_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("home");
    let home = path.to_str().unwrap();
    let invite = init(home);
    let strange = imghome(&["serve", home, "--max-stored", "lots"]);
    assert_eq!(strange.status.code(), Some(2));
    let said = String::from_utf8(strange.stderr).unwrap();
    assert!(said.contains("a size looks like"), "{said}");

    let device = Device::new(1);
    let objects = tree::tree(1, 2, 3).objects;
    for (limit, fits) in [("1K", false), ("1G", true)] {
        let served = Served::start_with(home, &["--max-stored", limit]);
        let connection = connect(&served, &invite).await;
        if !fits {
            found(&connection, &device, invite.secret).await;
        }
        let (upload, _) = begin(&connection, &device, Vec::new()).await;
        let objects = stream::iter(objects.clone());
        let pushed = connection.push(upload, objects, |_| {}).await;
        assert_eq!(pushed.is_ok(), fits, "{pushed:?}");
        served.terminate();
    }
}

#[tokio::test]
async fn a_running_home_is_backed_up_and_restored_by_its_operator() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (home, to, restored) = (at("home"), at("backup"), at("restored"));
    let invite = init(&home);
    let served = Served::start(&home);
    let connection = connect(&served, &invite).await;
    let image = found(&connection, &Device::new(1), invite.secret).await;
    let strange = imghome(&["backup", &home, dir.path().to_str().unwrap()]);
    assert_eq!(strange.status.code(), Some(2), "{strange:?}");
    let none = imghome(&["restore", &to, &restored]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    let made = imghome(&["backup", &home, &to, "--json"]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(json(&made)["problems"].as_array().unwrap().len(), 0);
    // A device that is connected and idle does not hold up the end.
    served.terminate();

    let back = imghome(&["restore", &to, &restored]);
    assert!(back.status.success(), "{back:?}");
    let said = String::from_utf8(back.stdout).unwrap();
    assert!(said.contains("All leases are void"), "{said}");
    let again = imghome(&["restore", &to, &restored]);
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    let usage = imghome(&["usage", &restored]);
    let usage = String::from_utf8(usage.stdout).unwrap();
    assert!(
        usage.contains("iB are free") && usage.contains("restored"),
        "{usage}"
    );
    let served = Served::start(&restored);
    // The same key, and the same roster: the device is at home.
    let connection = connect(&served, &invite).await;
    begin(&connection, &Device::new(1), Vec::new()).await;
    let leases = Call::Leases {
        device: None,
        after: None,
    };
    let (images, more) = (Vec::new(), false);
    let told = call(&connection, leases).await;
    assert_eq!(told, Some(Answer::Leases { images, more }));
    assert!(image.head.is_none());
    served.terminate();
    assert!(imghome(&["check", &restored]).status.success());
}
