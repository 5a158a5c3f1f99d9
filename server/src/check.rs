//! Checking a home that nobody serves: every row against every other and against the stored bytes.

use std::collections::BTreeMap;

use img_records::{LogEntry, SignedReceipt};
use img_types::bytes::Reader;
use img_types::limits::DISK_RESERVE;
use img_types::object::{self, ObjectKind};
use img_types::{CommitId, DeviceId, LogRoot, ObjectId};

use crate::calls::{Figures, figures};
use crate::clock::RunningMillis;
use crate::db::objects as rows;
use crate::db::{self, Columns as _, OpenError, Stop, history};
use crate::home::{Home, Places, StartError};
use crate::objects::Read;
use crate::proposal::Proposed;

/// Rows looked at in one step.
const STEP: i64 = 1_024;
/// Findings that are told; a broken disk has millions.
const FINDINGS_MAX: usize = 1_000;
/// Pins that are listed one by one.
const PINS_LISTED_MAX: u32 = 1_000;

/// Why a home could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It does not open.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It failed on the way.
    #[error("{0}")]
    Failed(String),
}

impl From<Stop> for CheckError {
    fn from(stop: Stop) -> Self {
        Self::Failed(stop.to_string())
    }
}

impl From<sqlx::Error> for CheckError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(format!("the database failed: {error}"))
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Objects whose bytes were read and match their id.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Commits whose record, receipt and root are sound.
    pub commits: u64,
    /// Entries of the log that chain to the newest root.
    pub log_entries: u64,
    /// What is wrong, each as a sentence.
    pub problems: Vec<String>,
    /// How many more were found than are told.
    pub untold: u64,
}

impl Findings {
    fn problem(&mut self, problem: String) {
        if self.problems.len() < FINDINGS_MAX {
            self.problems.push(problem);
        } else {
            self.untold += 1;
        }
    }
}

/// What a home holds, counted beside a running server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Live images.
    pub images: u64,
    /// Stored objects.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Commits that are kept for read-only checkouts.
    pub pins: u64,
    /// The pins that end first.
    pub first_pins: Vec<Pinned>,
    /// Whether the home was restored from a backup, so that nothing may be collected.
    pub restored: bool,
    /// Free bytes of the spool's disk, above what is kept in reserve.
    pub free_bytes: u64,
}

/// A commit that is kept for a read-only checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// The commit.
    pub commit: CommitId,
    /// The device that reads it.
    pub device: DeviceId,
    /// Milliseconds of the home's running time that it is still kept; the device's next contact renews them.
    pub remaining_ms: u64,
}

/// Counts what a home holds.
///
/// # Errors
/// The database does not open.
pub async fn usage(places: &Places) -> Result<Usage, OpenError> {
    let mut connection = db::connect(&places.database).await?;
    let Figures {
        images,
        objects,
        object_bytes,
        packs,
        pins,
    } = figures(&mut connection).await?;
    let home = sqlx::query("SELECT running_ms, restored FROM home")
        .fetch_one(&mut connection)
        .await?;
    let now = RunningMillis(home.number(0)?);
    let first_pins = history::pins(&mut connection, now, PINS_LISTED_MAX).await?;
    let first_pins = first_pins.into_iter().map(|pin| Pinned {
        commit: pin.commit,
        device: pin.device,
        remaining_ms: pin.remaining_ms,
    });
    let free = rustix::fs::statvfs(places.folder.spool())
        .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    Ok(Usage {
        images,
        objects,
        object_bytes,
        packs,
        pins,
        first_pins: first_pins.collect(),
        restored: home.number(1)? != 0,
        free_bytes: free.saturating_sub(DISK_RESERVE),
    })
}

/// Reads everything a home holds and verifies it. The home must not be served meanwhile. Damaged objects count
/// as absent afterwards.
///
/// # Errors
/// The home does not open, or the database fails; damage is no error but a finding.
pub async fn check(places: &Places) -> Result<Findings, CheckError> {
    let home = Home::open(places).await?;
    let mut findings = Findings::default();
    let checked = async {
        check_packs(&home, &mut findings).await?;
        if check_objects(&home, &mut findings).await? {
            // Nodes may have been looked at before what they name was found damaged.
            let mut again = Findings::default();
            check_objects(&home, &mut again).await?;
            for problem in again.problems {
                if !findings.problems.contains(&problem) {
                    findings.problem(problem);
                }
            }
        }
        check_log(&home, &mut findings).await?;
        check_commits(&home, &mut findings).await
    };
    let checked = checked.await;
    home.close().await;
    checked.map(|()| findings)
}

/// Every pack that a row names has a sound table.
async fn check_packs(home: &Home, findings: &mut Findings) -> Result<(), CheckError> {
    let mut connection = home.db.reads().acquire().await?;
    for (_, pack) in rows::packs(&mut connection).await? {
        if let Err(error) = home.objects.packs().table(pack).await {
            findings.problem(error.to_string());
        }
    }
    Ok(())
}

/// Every object's bytes have its id, and complete ones have all their children; says whether some are damaged.
async fn check_objects(home: &Home, findings: &mut Findings) -> Result<bool, CheckError> {
    let mut after = 0;
    let mut damaged = false;
    loop {
        let mut connection = home.db.reads().acquire().await?;
        let step = sqlx::query(
            "SELECT number, id, missing FROM objects WHERE number > $1 ORDER BY number LIMIT $2",
        )
        .bind(db::big(after))
        .bind(STEP)
        .fetch_all(&mut *connection)
        .await?;
        let mut objects = BTreeMap::new();
        for row in step {
            after = row.number(0)?;
            objects.insert(row.id(1, ObjectId::from_bytes)?, row.number(2)? == 0);
        }
        if objects.is_empty() {
            return Ok(damaged);
        }
        let ids: Vec<ObjectId> = objects.keys().copied().collect();
        let located = rows::locate(&mut connection, &ids).await?;
        for (id, complete) in objects {
            let read = match located.get(&id) {
                Some(place) => home.objects.read(id, *place).await,
                None => Ok(Read::Absent),
            };
            let bytes = match read {
                Ok(Read::Sound(bytes)) => bytes,
                Ok(Read::Absent) => {
                    findings.problem(format!("object {id} is not where its row says"));
                    continue;
                }
                Ok(Read::Damaged) => {
                    damaged = true;
                    findings.problem(format!(
                        "object {id} is damaged and counts as absent from now on; \
                         a device that has it sends it again"
                    ));
                    continue;
                }
                Err(error) => {
                    findings.problem(format!("object {id} cannot be read: {error}"));
                    continue;
                }
            };
            let header = match object::verify(id, &bytes) {
                Ok(parsed) => parsed.header,
                Err(error) => {
                    findings.problem(format!("object {id} is damaged: {error}"));
                    continue;
                }
            };
            findings.objects += 1;
            findings.object_bytes += bytes.len() as u64;
            if complete && header.kind != ObjectKind::Trace {
                let found = rows::complete(&mut connection, &header.children).await?;
                let lacking = header.children.iter().filter(|id| !found.contains(id));
                for child in lacking {
                    findings.problem(format!("object {id} counts as complete without {child}"));
                }
            }
        }
    }
}

/// The log's entries chain to the root that stands beside each.
async fn check_log(home: &Home, findings: &mut Findings) -> Result<(), CheckError> {
    let mut root = LogEntry::EMPTY_ROOT;
    let mut position = 0;
    loop {
        let mut connection = home.db.reads().acquire().await?;
        let step = sqlx::query(
            "SELECT position, entry, root FROM log WHERE position > $1 ORDER BY position LIMIT $2",
        )
        .bind(db::big(position))
        .bind(STEP)
        .fetch_all(&mut *connection)
        .await?;
        if step.is_empty() {
            return Ok(());
        }
        for row in step {
            let found = row.number(0)?;
            let stored = row.id(2, LogRoot::from_bytes)?;
            let bytes = row.bytes(1)?;
            let chained = LogEntry::decode(&mut Reader::new(&bytes))
                .map(|entry| LogEntry::chain(root, &entry));
            if found != position + 1 || chained != Ok(stored) {
                findings.problem(format!("the log does not chain at position {found}"));
                return Ok(());
            }
            (position, root) = (found, stored);
            findings.log_entries += 1;
        }
    }
}

/// Every commit has its record, its receipt by this home's key, and a complete root; heads exist.
async fn check_commits(home: &Home, findings: &mut Findings) -> Result<(), CheckError> {
    let Ok(roster) = home.roster() else {
        return Ok(());
    };
    let mut connection = home.db.reads().acquire().await?;
    let ids = sqlx::query("SELECT id, record, receipt FROM commits ORDER BY image, seq")
        .fetch_all(&mut *connection)
        .await?;
    for row in ids {
        let id = row.id(0, img_types::CommitId::from_bytes)?;
        let proposed = Proposed::stored(&row.bytes(1)?, roster.home());
        let receipt = SignedReceipt::decode(&row.bytes(2)?);
        let sound = receipt.is_ok_and(|receipt| {
            let signed = receipt.verify(&roster.home(), &home.key.public()).is_ok();
            signed && receipt.record.commit == id
        });
        let root = match proposed {
            Ok(proposed) if proposed.proposal.commit == id && sound => proposed.proposal.root,
            _ => {
                findings.problem(format!("commit {id} has a damaged record or receipt"));
                continue;
            }
        };
        if rows::complete(&mut connection, &[root]).await?.is_empty() {
            findings.problem(format!("commit {id} has no complete root"));
            continue;
        }
        findings.commits += 1;
    }
    let lost = sqlx::query(
        "SELECT i.image FROM images i LEFT JOIN commits c ON c.id = i.head \
         WHERE i.head IS NOT NULL AND c.id IS NULL",
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in lost {
        let image = row.id(0, img_types::ImageId::from_bytes)?;
        findings.problem(format!("the head of image {image} is no commit"));
    }
    Ok(())
}
