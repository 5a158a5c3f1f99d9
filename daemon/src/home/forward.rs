//! The ways on after a home went back in time: giving back what this device has, or going on without.
//!
//! Both bring back the roster first, because it is what everything else is signed under. Each device gives the part
//! of an image's line that it has, from the home's head on, so that several bring back what none of them has alone.
//! Giving back goes on with the home only when nothing that this device knows of is lost any more: until then another
//! device may have the rest. Each can be interrupted and asked for again at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, stream};
use img_net::Connection;
use img_proto::{Answer, Call, ImageRow, Refusal};
use img_records::{SignedCommit, commit_id};
use img_types::{CheckoutId, CommitId, DeviceId, ImageId, ObjectId, UploadId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::line::{Line, Missing, chain};
use super::restored::{BackInTime, Loss, Place, Visit};
use super::{CallError, Home, PATIENCE};
use crate::enrol::device_name;
use crate::events::{Phase, Reporter};
use crate::random::random;
use crate::state::Acknowledged;
use crate::stream::mend::{Asker, lacking};

/// What became of a home that went back in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Images that were given back, at least in part.
    pub given: Vec<Given>,
    /// What is lost all the same.
    pub lost: Vec<Lost>,
    /// Roster entries that were given back.
    pub roster: u64,
}

/// An image that was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Its name.
    pub name: String,
    /// Which.
    pub image: ImageId,
    /// How many commits.
    pub commits: u64,
    /// The newest of them.
    pub head: Place,
    /// Bytes that had to be sent for them.
    pub sent_bytes: u64,
}

/// An image that is not whole at the home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// What the home lacks.
    pub loss: Loss,
    /// Why it was not given back, for a person.
    pub why: String,
    /// What this device lacks of it, each with the name of who made it, if that is known.
    pub missing: Vec<(Missing, Option<String>)>,
}

/// What ended the giving back of an image before its newest commit.
enum Stop {
    /// A commit whose objects are not all on this device.
    Objects(CommitId, Vec<ObjectId>),
    Refused(Refusal),
}

impl Forwarded {
    /// What was given back, for a person; empty if nothing was.
    pub fn sentences(&self) -> String {
        let given = self.given.iter().map(|given| {
            let commits = match given.commits {
                1 => "1 commit".to_owned(),
                many => format!("{many} commits"),
            };
            let (name, head) = (&given.name, given.head.words());
            format!("The home got back {commits} of {name}, up to {head}. ")
        });
        let roster = match self.roster {
            0 => None,
            1 => Some("The home got back 1 change of the list of devices. ".to_owned()),
            many => Some(format!(
                "The home got back {many} changes of the list of devices. "
            )),
        };
        given.chain(roster).collect()
    }

    /// The way on where something is lost: the devices that made what is missing here, `own` excepted.
    pub fn hint(&self, own: &DeviceId) -> String {
        let missing = || self.lost.iter().flat_map(|lost| &lost.missing);
        let others = missing().filter(|(missing, _)| missing.device.as_ref() != Some(own));
        let names: BTreeSet<_> = others.filter_map(|(_, name)| name.as_deref()).collect();
        let names: Vec<_> = names.into_iter().collect();
        let ask = if !names.is_empty() {
            format!(
                "Type `imgctl home forward` on {}, then here again. ",
                names.join(" and on ")
            )
        } else if missing().next().is_some() {
            "Another device may have the rest: type `imgctl home forward` there, then here again. "
                .to_owned()
        } else {
            String::new()
        };
        format!("{ask}Go on without what is lost: `imgctl home accept-restore`.")
    }

    /// The answer to whoever asked.
    pub fn to_json(&self) -> Value {
        let given = self.given.iter().map(|given| {
            json!({
                "name": given.name,
                "image": given.image,
                "commits": given.commits,
                "seq": given.head.seq,
                "commit": given.head.commit,
                "sent_bytes": given.sent_bytes,
            })
        });
        let lost = self.lost.iter().map(|lost| {
            let missing = lost.missing.iter().take(MISSING_TOLD_MAX);
            let missing = missing.map(|(missing, name)| {
                json!({
                    "first": missing.first,
                    "last": missing.last,
                    "commit": missing.commit,
                    "device": name,
                    "device_id": missing.device,
                })
            });
            let mut loss = lost.loss.to_json();
            loss["reason"] = json!(lost.why);
            loss["missing"] = missing.collect();
            loss
        });
        json!({
            "given": given.collect::<Vec<_>>(),
            "lost": lost.collect::<Vec<_>>(),
            "roster": self.roster,
        })
    }
}

impl Home {
    /// Whether the home is one that went back in time; waits for the first contact.
    ///
    /// # Errors
    /// The home is away.
    pub async fn is_back_in_time(&self) -> Result<bool, CallError> {
        match self.link.connected(Instant::now() + PATIENCE).await {
            Ok(_) => Ok(self.core.is_bad()),
            Err(_) if self.core.is_bad() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the home back what this device has of what it lost, and goes on with it if nothing is lost any more.
    ///
    /// # Errors
    /// The home is away or refuses.
    pub async fn forward(&self, reporter: &Reporter) -> Result<Forwarded, CallError> {
        let connection = self.visit().await?;
        let visit = Visit::begin(&self.core, &connection).await?;
        let mut done = Forwarded {
            roster: self.bring_roster(&visit).await?,
            ..Forwarded::default()
        };
        let rows = visit.images().await?;
        let mut stops = BTreeMap::new();
        for loss in visit.losses(&rows).await? {
            let (given, stop) = self
                .give(&visit, &connection, &loss, &rows, reporter)
                .await?;
            done.given.extend(given);
            stops.extend(stop.map(|stop| (loss.image, stop)));
        }
        let rows = visit.images().await?;
        for loss in visit.losses(&rows).await? {
            let stop = stops.remove(&loss.image);
            done.lost.push(self.lost(loss, stop).await?);
        }
        if done.lost.is_empty() {
            self.go_on(&visit, Vec::new(), rows).await?;
        } else {
            let losses = done.lost.iter().map(|lost| lost.loss.clone()).collect();
            self.core.declare_bad(BackInTime { losses });
        }
        Ok(done)
    }

    /// Goes on with the home as it is now. Returns what is lost there.
    ///
    /// # Errors
    /// The home is away or refuses.
    pub async fn accept_restore(&self) -> Result<Forwarded, CallError> {
        let connection = self.visit().await?;
        let visit = Visit::begin(&self.core, &connection).await?;
        let roster = self.bring_roster(&visit).await?;
        let rows = visit.images().await?;
        let losses = visit.losses(&rows).await?;
        let mut lost = Vec::new();
        for loss in &losses {
            let known = self.known(loss.image).await?;
            let kept = loss.to.map(|to| chain(&known, to.commit, None));
            let kept: BTreeSet<_> = kept.unwrap_or_default().into_iter().collect();
            let commits = known.iter().map(|known| known.commit);
            lost.extend(commits.filter(|commit| !kept.contains(commit)));
        }
        self.go_on(&visit, lost, rows).await?;
        let lost = losses.into_iter().map(|loss| Lost {
            loss,
            why: "accepted".to_owned(),
            missing: Vec::new(),
        });
        Ok(Forwarded {
            lost: lost.collect(),
            roster,
            ..Forwarded::default()
        })
    }

    async fn visit(&self) -> Result<Connection, CallError> {
        let pin = self.core.pin();
        let identity = self.core.identity.tls();
        let connecting = img_net::connect(&pin.address, pin.home_key_hash, &identity);
        let connected = tokio::time::timeout(PATIENCE, connecting).await;
        let connected = connected.map_err(|_| CallError::Away)?;
        Ok(connected.map_err(img_net::LinkError::from)?)
    }

    async fn go_on(
        &self,
        visit: &Visit<'_>,
        lost: Vec<CommitId>,
        rows: Vec<ImageRow>,
    ) -> Result<(), CallError> {
        let at = visit.at().ok_or(CallError::Protocol("no standing"))?;
        let state = &self.core.state;
        state.with(move |db| db.go_on_without(&lost, &rows)).await?;
        self.core.go_on(at).await?;
        // Whoever asked finds things going on; if not yet, then soon.
        let _ = self.link.connected(Instant::now() + PATIENCE).await;
        Ok(())
    }

    /// Brings back the roster entries that the home lacks, and learns those that it has beyond.
    async fn bring_roster(&self, visit: &Visit<'_>) -> Result<u64, CallError> {
        let mut at_home: u64 = 0;
        loop {
            let Answer::Roster { entries, more } =
                visit.ask(Call::Roster { from: at_home }).await?
            else {
                return Err(CallError::Protocol("no roster"));
            };
            let own = self.core.state.with(|db| db.roster()).await?;
            let known = own
                .iter()
                .skip(usize::try_from(at_home).unwrap_or(usize::MAX));
            if known
                .zip(&entries)
                .any(|(own, theirs)| own[..] != theirs[..])
            {
                return Err(CallError::Protocol(
                    "its list of devices went another way since it was restored; enrol this device anew",
                ));
            }
            self.core.grow_roster(at_home, &entries).await?;
            at_home += entries.len() as u64;
            if !more || entries.is_empty() {
                break;
            }
        }
        let own = self.core.state.with(|db| db.roster()).await?;
        let mut brought = 0;
        for entry in own
            .into_iter()
            .skip(usize::try_from(at_home).unwrap_or(usize::MAX))
        {
            let entry = Bytes::from(entry);
            visit.mutate(Call::RosterAppend { entry }).await?;
            brought += 1;
        }
        Ok(brought)
    }

    async fn known(&self, image: ImageId) -> Result<Vec<Acknowledged>, CallError> {
        let state = &self.core.state;
        Ok(state.with(move |db| db.acknowledged(image)).await?)
    }

    /// Commits of an image that this device saw, with or without their receipts. They were verified then.
    async fn seen_commits(
        &self,
        image: ImageId,
    ) -> Result<Vec<(CommitId, SignedCommit)>, CallError> {
        let seen = self.core.state.with(move |db| {
            let head = db.image(image)?.and_then(|row| row.head);
            let checkouts = db.checkouts()?.into_iter();
            let bases = checkouts.filter(|row| row.image == image);
            let bases = bases.filter_map(|row| row.base);
            Ok(head.into_iter().map(Vec::from).chain(bases).collect())
        });
        let seen: Vec<Vec<u8>> = seen.await?;
        let home = self.core.pin().home;
        let signed = seen
            .iter()
            .filter_map(|record| SignedCommit::decode(record).ok());
        Ok(signed
            .map(|signed| (commit_id(&signed, &home), signed))
            .collect())
    }

    /// Says of what is still lost after giving back which commits are missing here, and who made them.
    async fn lost(&self, loss: Loss, stop: Option<Stop>) -> Result<Lost, CallError> {
        let known = self.known(loss.image).await?;
        let seen = self.seen_commits(loss.image).await?;
        let line = Line::new(&loss, &known, &seen);
        let (ring, roster) = (self.objects().keyring(), self.roster());
        let name = |device: &DeviceId| match *device == self.device() {
            true => "this device".to_owned(),
            false => device_name(&ring, &roster, device),
        };
        let (unfit, mut reasons) = match stop {
            Some(Stop::Objects(commit, nowhere)) => (Some((commit, nowhere)), Vec::new()),
            Some(Stop::Refused(refusal)) => (None, vec![format!("the home refuses it: {refusal}")]),
            None => (None, Vec::new()),
        };
        let missing = match line.others_went_on() {
            true => Vec::new(),
            false => line.missing(unfit.as_ref().map(|(commit, _)| *commit)),
        };
        if line.others_went_on() {
            reasons.push("others went on from an older commit".to_owned());
        }
        let mut absent = Vec::new();
        for row in &missing {
            match &unfit {
                Some((commit, nowhere)) if row.commit == Some(*commit) => {
                    let objects = match nowhere.len() {
                        1 => "an object that is".to_owned(),
                        many => format!("{many} objects that are"),
                    };
                    let first = nowhere.first().map(ToString::to_string);
                    reasons.push(format!(
                        "{} needs {objects} not on this device (the first is {})",
                        row.words(name),
                        first.unwrap_or_default()
                    ));
                }
                _ => absent.push(row),
            }
        }
        if let Some(last) = absent.last() {
            let are = match absent.len() == 1 && last.first == last.last {
                true => "is",
                false => "are",
            };
            let named = absent.iter().take(MISSING_NAMED_MAX);
            let mut words: Vec<_> = named.map(|row| row.words(name)).collect();
            if absent.len() > MISSING_NAMED_MAX {
                words.push(format!("others up to commit {}", last.last));
            }
            reasons.push(format!("{} {are} not on this device", words.join(" and ")));
        }
        if reasons.is_empty() {
            reasons.push("what this device has does not follow it".to_owned());
        }
        let named = |row: Missing| (row, row.device.as_ref().map(name));
        Ok(Lost {
            loss,
            why: reasons.join(", and "),
            missing: missing.into_iter().map(named).collect(),
        })
    }

    /// Gives back one image, as far as its commits and objects are here. Returns what ended it before.
    async fn give(
        &self,
        visit: &Visit<'_>,
        connection: &Connection,
        loss: &Loss,
        rows: &[ImageRow],
        reporter: &Reporter,
    ) -> Result<(Option<Given>, Option<Stop>), CallError> {
        let known = self.known(loss.image).await?;
        let seen = self.seen_commits(loss.image).await?;
        let chain = Line::new(loss, &known, &seen).givable();
        if chain.is_empty() {
            return Ok((None, None));
        }
        reporter.phase(Phase::Push, None);
        let upload = OwnUpload::open(visit).await?;
        let (mut sent_bytes, mut complete, mut stop) = (0, 0, None);
        for commit in &chain {
            let record =
                of(&known, commit).and_then(|known| SignedCommit::decode(&known.record).ok());
            let Some(root) = record.map(|record| record.record.root) else {
                break;
            };
            let lacking = lacking(&upload, self.objects(), root).await?;
            // Also of what is not whole here: another device may have the rest.
            sent_bytes += upload
                .push(connection, self, lacking.here, reporter)
                .await?;
            if !lacking.nowhere.is_empty() {
                stop = Some(Stop::Objects(*commit, lacking.nowhere));
                break;
            }
            complete += 1;
        }
        let given = self
            .readmit(visit, loss, rows, &known, &chain[..complete])
            .await;
        upload.close().await?;
        let head = match given {
            Ok(head) => head,
            Err(CallError::Refused(refusal)) => return Ok((None, Some(Stop::Refused(refusal)))),
            Err(error) => return Err(error),
        };
        let given = head.map(|head| Given {
            name: loss.name.clone(),
            image: loss.image,
            commits: complete as u64,
            head,
            sent_bytes,
        });
        Ok((given, stop))
    }

    /// Has the home take commits back, as many at a time as fit a request. Returns the newest.
    async fn readmit(
        &self,
        visit: &Visit<'_>,
        loss: &Loss,
        rows: &[ImageRow],
        known: &[Acknowledged],
        chain: &[CommitId],
    ) -> Result<Option<Place>, CallError> {
        let descriptor = match rows.iter().any(|row| row.image == loss.image) {
            true => None,
            false => self.descriptor(loss.image).await?,
        };
        let mut chain: Vec<_> = chain
            .iter()
            .filter_map(|commit| of(known, commit))
            .collect();
        let newest = chain.last().map(|newest| Place {
            seq: newest.seq,
            commit: newest.commit,
        });
        while !chain.is_empty() {
            let mut room = READMIT_LEN_MAX;
            let fitting = chain.iter().take_while(|commit| {
                let len = commit.record.len() + commit.receipt.len();
                let fits = len <= room;
                room = room.saturating_sub(len);
                fits
            });
            // A record alone always fits.
            let count = fitting.count().max(1);
            let commits = chain.drain(..count);
            let commits =
                commits.map(|commit| (commit.record.clone().into(), commit.receipt.clone().into()));
            let call = Call::Readmit {
                image: loss.image,
                descriptor: descriptor.clone(),
                commits: commits.collect(),
            };
            visit.mutate(call).await?;
        }
        Ok(newest)
    }

    /// The newest signed descriptor of an image that this device knows.
    async fn descriptor(&self, image: ImageId) -> Result<Option<Bytes>, CallError> {
        let state = &self.core.state;
        let found = state.with(move |db| {
            if let Some(row) = db.image(image)? {
                return Ok(Some(row.descriptor));
            }
            let mut rows = db.checkouts()?.into_iter();
            let row = rows.find(|row| row.image == image);
            Ok(row.map(|row| row.descriptor.into()))
        });
        Ok(found.await?)
    }
}

fn of<'a>(known: &'a [Acknowledged], commit: &CommitId) -> Option<&'a Acknowledged> {
    known.iter().find(|known| known.commit == *commit)
}

/// An upload session for what is given back.
struct OwnUpload<'a> {
    visit: &'a Visit<'a>,
    upload: UploadId,
}

impl<'a> OwnUpload<'a> {
    async fn open(visit: &'a Visit<'a>) -> Result<Self, CallError> {
        let checkout = CheckoutId::from_bytes(random());
        match visit.ask(Call::OpenUpload { checkout }).await? {
            Answer::Upload { upload } => Ok(Self { visit, upload }),
            _ => Err(CallError::Protocol("no upload session")),
        }
    }

    async fn push(
        &self,
        connection: &Connection,
        home: &Home,
        ids: Vec<ObjectId>,
        reporter: &Reporter,
    ) -> Result<u64, CallError> {
        if ids.is_empty() {
            return Ok(0);
        }
        let read = |id: ObjectId| {
            let objects = Arc::clone(home.objects());
            async move {
                let read = tokio::task::spawn_blocking(move || objects.object_bytes(&id));
                read.await.ok().flatten()
            }
        };
        // What was evicted in between ends the push; the home says then that the commit is incomplete.
        let objects = stream::unfold(ids.into_iter(), |mut ids| async {
            let bytes = read(ids.next()?).await?;
            home.uplink().let_through(bytes.len() as u64).await;
            Some((bytes, ids))
        });
        let mut before = 0;
        let pushed = connection.push(self.upload, objects, |pushed| {
            reporter.advance(pushed.bytes.saturating_sub(before));
            before = pushed.bytes.max(before);
        });
        Ok(pushed.await?.bytes)
    }

    async fn close(&self) -> Result<(), CallError> {
        let upload = self.upload;
        match self.visit.ask(Call::CloseUpload { upload }).await {
            Ok(_) | Err(CallError::Refused(Refusal::SessionClosed)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Asker for OwnUpload<'_> {
    fn missing(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<u32>, CallError>> {
        let upload = self.upload;
        async move {
            match self.visit.ask(Call::Missing { upload, ids }).await? {
                Answer::Missing { positions } => Ok(positions),
                _ => Err(CallError::Protocol("no positions")),
            }
        }
        .boxed()
    }
}

/// Runs of missing commits that a sentence names.
const MISSING_NAMED_MAX: usize = 4;
/// Runs of missing commits that an answer lists.
const MISSING_TOLD_MAX: usize = 256;
/// Records and receipts in one request: it may be twice as long.
const READMIT_LEN_MAX: usize = 64 * 1024;
