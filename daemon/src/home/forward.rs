//! The ways on after a home went back in time: giving back what this device has, or going on without.
//!
//! Both bring back the roster first, because it is what everything else is signed under. Giving back goes on with
//! the home only when nothing that this device knows of is lost any more: until then another device may have the
//! rest. Each can be interrupted and asked for again at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, stream};
use img_net::Connection;
use img_proto::{Answer, Call, ImageRow, Refusal};
use img_records::SignedCommit;
use img_types::{CheckoutId, CommitId, ImageId, ObjectId, UploadId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::restored::{BackInTime, Loss, Place, Visit};
use super::{CallError, Home, PATIENCE};
use crate::events::{Phase, Reporter};
use crate::random::random;
use crate::state::Acknowledged;
use crate::stream::mend::{Asker, lacking};

/// What became of a home that went back in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Images that were given back, at least in part.
    pub given: Vec<Given>,
    /// What is lost all the same, each with the reason.
    pub lost: Vec<(Loss, String)>,
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

impl Forwarded {
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
        let lost = self.lost.iter().map(|(loss, why)| {
            let mut loss = loss.to_json();
            loss["reason"] = json!(why);
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
        let mut reasons = BTreeMap::new();
        for loss in visit.losses(&rows).await? {
            let (given, why) = self
                .give(&visit, &connection, &loss, &rows, reporter)
                .await?;
            done.given.extend(given);
            reasons.extend(why.map(|why| (loss.image, why)));
        }
        let rows = visit.images().await?;
        for loss in visit.losses(&rows).await? {
            let why = reasons.remove(&loss.image);
            let why = why.unwrap_or_else(|| "its newest commits are not on this device".to_owned());
            done.lost.push((loss, why));
        }
        if done.lost.is_empty() {
            self.go_on(&visit, Vec::new(), rows).await?;
        } else {
            let losses = done.lost.iter().map(|(loss, _)| loss.clone()).collect();
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
        let why = "accepted".to_owned();
        Ok(Forwarded {
            lost: losses.into_iter().map(|loss| (loss, why.clone())).collect(),
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

    /// Gives back one image, as far as its commits and objects are here. Returns why if not all of it is.
    async fn give(
        &self,
        visit: &Visit<'_>,
        connection: &Connection,
        loss: &Loss,
        rows: &[ImageRow],
        reporter: &Reporter,
    ) -> Result<(Option<Given>, Option<String>), CallError> {
        let known = self.known(loss.image).await?;
        let has = |commit: &CommitId| known.iter().any(|known| known.commit == *commit);
        if !has(&loss.from.commit) {
            let why = "its newest commits were made elsewhere and are not on this device";
            return Ok((None, Some(why.to_owned())));
        }
        let chain = chain(&known, loss.from.commit, loss.to.map(|to| to.commit));
        let first = chain.first().and_then(|first| of(&known, first));
        let reaches = first.is_some_and(|first| match loss.to {
            Some(to) => parent(first) == Some(to.commit),
            None => first.seq.0 == 0,
        });
        if !reaches {
            let why = match loss.to {
                Some(to) if to.seq < loss.from.seq => {
                    "a commit between is not on this device, or others went on from an older one"
                }
                _ => "others went on from an older commit",
            };
            return Ok((None, Some(why.to_owned())));
        }
        reporter.phase(Phase::Push, None);
        let upload = OwnUpload::open(visit).await?;
        let (mut sent_bytes, mut complete, mut why) = (0, 0, None);
        for commit in &chain {
            let record =
                of(&known, commit).and_then(|known| SignedCommit::decode(&known.record).ok());
            let Some(root) = record.map(|record| record.record.root) else {
                break;
            };
            let lacking = lacking(&upload, self.objects(), root).await?;
            sent_bytes += upload
                .push(connection, self, lacking.here, reporter)
                .await?;
            if let Some(first) = lacking.nowhere.first() {
                why = Some(format!(
                    "commit {} needs {} that {} not on this device (the first is {first})",
                    commit.short(),
                    match lacking.nowhere.len() {
                        1 => "an object".to_owned(),
                        many => format!("{many} objects"),
                    },
                    if lacking.nowhere.len() == 1 {
                        "is"
                    } else {
                        "are"
                    },
                ));
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
            Err(CallError::Refused(refusal)) => {
                return Ok((None, Some(format!("the home refuses it: {refusal}"))));
            }
            Err(error) => return Err(error),
        };
        let given = head.map(|head| Given {
            name: loss.name.clone(),
            image: loss.image,
            commits: complete as u64,
            head,
            sent_bytes,
        });
        Ok((given, why))
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

/// The parent of a commit within its image.
fn parent(commit: &Acknowledged) -> Option<CommitId> {
    let signed = SignedCommit::decode(&commit.record).ok()?;
    let parent = signed.record.parent?;
    (parent.image == commit.image).then_some(parent.commit)
}

/// The commits from behind `base` to `tip`, oldest first, as far back as they are known.
fn chain(known: &[Acknowledged], tip: CommitId, base: Option<CommitId>) -> Vec<CommitId> {
    let by_id: BTreeMap<_, _> = known.iter().map(|known| (known.commit, known)).collect();
    let mut chain = Vec::new();
    let mut next = Some(tip);
    while let Some(commit) = next.filter(|next| Some(*next) != base)
        && let Some(known) = by_id.get(&commit)
    {
        chain.push(commit);
        next = parent(known);
    }
    chain.reverse();
    chain
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

/// Records and receipts in one request: it may be twice as long.
const READMIT_LEN_MAX: usize = 64 * 1024;
