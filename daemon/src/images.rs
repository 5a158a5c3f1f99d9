//! The images of the home, as this device verifies and shows them.
//!
//! Owns listing, naming, history and the resolution of what a person writes for a commit. It knows nothing of
//! checkouts and mounts. Answers have the fields of `docs/control-api.md`.

mod audit;
mod branch;
mod create;
mod diff;
mod export;
mod history;
mod log;
pub(crate) mod paths;
mod resolve;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use img_proto::{Answer, Call, ImageRow};
use img_records::{SignedCommit, commit_id};
use img_types::{CommitId, DeviceId, ImageName, Seq, WallMillis};
use serde_json::{Value, json};

use crate::commits::{OpenCommit, OpenDescriptor, RecordError, Trust};
use crate::enrol::device_name;
use crate::error::{ApiError, Kind};
use crate::events::{later, now, time, time_after};
use crate::home::{CallError, Home};
use crate::state::{Database, State};

pub use create::CreateRequest;
pub use diff::DiffRequest;
pub use export::{ExportRequest, LocalState};
pub use history::CommitSpec;
pub use log::{Local, LocalCheckpoint};
pub use resolve::{Named, NamedRoot};

/// The images of one home.
#[derive(Debug, Clone)]
pub struct Images {
    home: Arc<Home>,
    state: State,
    turns: Arc<Turns>,
}

/// Puts listings that were asked for at the same time in order.
#[derive(Debug, Default)]
struct Turns {
    /// The number of the newest that was asked for.
    asked: AtomicU64,
    /// The number of the newest that was written down.
    written: AtomicU64,
    /// When the newest was asked for that was answered; nothing before the first.
    answered: Mutex<Option<WallMillis>>,
}

/// An image whose records have been verified.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the home says about it.
    pub row: ImageRow,
    /// Its name and options.
    pub descriptor: OpenDescriptor,
    /// Its newest commit.
    pub head: Option<OpenCommit>,
}

/// The images, and whether they are as last seen because the home is away.
#[derive(Debug, Clone)]
pub struct Listing {
    /// By name.
    pub images: Vec<Image>,
    /// Whether the home was not asked.
    pub stale: bool,
}

impl Images {
    /// The images of a home.
    pub fn new(home: Arc<Home>, state: State) -> Self {
        Self {
            home,
            state,
            turns: Arc::default(),
        }
    }

    /// All images; as last seen if the home is away, without those whose records cannot be verified then.
    ///
    /// # Errors
    /// The home refused, or shows something that does not verify.
    pub async fn list(&self) -> Result<Listing, ApiError> {
        let turns = Arc::clone(&self.turns);
        let asked = now();
        let turn = turns.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let rows = match self.listed().await {
            Ok(images) => {
                let rows = images.clone();
                // One that was overtaken would take an image that is new since for a deleted one.
                let keep = move |db: &mut Database| {
                    if turns.written.fetch_max(turn, Ordering::Relaxed) > turn {
                        return Ok(());
                    }
                    db.set_images(&images)
                };
                let kept = self.state.with(keep).await;
                kept.map_err(ApiError::failed)?;
                *self.answered() = Some(asked);
                rows
            }
            Err(CallError::Away) => return self.list_seen().await,
            Err(error) => return Err(self.explain(&error, "")),
        };
        self.verify_all(rows, false).await
    }

    async fn verify_all(&self, rows: Vec<ImageRow>, stale: bool) -> Result<Listing, ApiError> {
        let mut images = Vec::with_capacity(rows.len());
        for row in rows {
            if !stale {
                images.push(self.verify(row).await?);
                continue;
            }
            let image = row.image;
            match checked(row.clone(), self.open(&row).await?) {
                Ok(image) => images.push(image),
                // The home could help: without it one record hides no image but its own.
                Err(error) => {
                    tracing::warn!(image = %image.short(), %error, "an image is left out of what was seen last");
                }
            }
        }
        images.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(Listing { images, stale })
    }

    /// All pages of the home's list.
    async fn listed(&self) -> Result<Vec<ImageRow>, CallError> {
        let mut rows: Vec<ImageRow> = Vec::new();
        loop {
            let after = rows.last().map(|row| row.image);
            let Answer::Images { images, more } = self.home.ask(Call::Images { after }).await?
            else {
                return Err(CallError::Protocol("no list of images"));
            };
            // A home that repeats itself or never ends would be asked for ever.
            let onward = images.first().is_some_and(|row| Some(row.image) > after);
            let ends = !more;
            rows.extend(images);
            if ends {
                return Ok(rows);
            }
            if !onward || rows.len() > LISTED_MAX {
                return Err(CallError::Protocol("no end of the list of images"));
            }
        }
    }

    /// All pages of the home's leases, also of images that are being imported.
    async fn leased(&self) -> Result<Vec<ImageRow>, CallError> {
        let mut rows: Vec<ImageRow> = Vec::new();
        loop {
            let device = None;
            let after = rows.last().map(|row| row.image);
            let asked = self.home.ask(Call::Leases { device, after }).await?;
            let Answer::Leases { images, more } = asked else {
                return Err(CallError::Protocol("no list of leases"));
            };
            let onward = images.first().is_some_and(|row| Some(row.image) > after);
            rows.extend(images);
            if !more {
                return Ok(rows);
            }
            if !onward || rows.len() > LISTED_MAX {
                return Err(CallError::Protocol("no end of the list of leases"));
            }
        }
    }

    /// One image, as the home shows it now.
    ///
    /// # Errors
    /// There is none of this name, or the home is away.
    pub async fn find(&self, name: &ImageName) -> Result<Image, ApiError> {
        let listing = self.list().await?;
        if listing.stale {
            return Err(self.explain(&CallError::Away, name.as_str()));
        }
        self.pick(listing, name)
    }

    /// One image, as last seen if the home is away.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn find_seen(&self, name: &ImageName) -> Result<Image, ApiError> {
        let listing = match self.home.revocation() {
            Some(_) => self.list_seen().await?,
            None => self.list().await?,
        };
        self.pick(listing, name)
    }

    /// All images as last seen.
    async fn list_seen(&self) -> Result<Listing, ApiError> {
        let rows = self.state.with(|db| db.images()).await;
        self.verify_all(rows.map_err(ApiError::failed)?, true).await
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// The name is taken, or the home is away or refuses.
    pub async fn rename(&self, name: &ImageName, to: &ImageName) -> Result<Image, ApiError> {
        let mut image = self.find(name).await?;
        if name == to {
            return Ok(image);
        }
        let mut private = image.descriptor.private.clone();
        private.name = to.to_string();
        let signed = self
            .trusted(|trust| {
                let previous = Some(&image.descriptor.signed);
                trust.sign_descriptor(self.home.identity(), image.row.image, previous, &private)
            })
            .map_err(ApiError::failed)?;
        let descriptor = signed.to_bytes();
        let call = Call::SetDescriptor {
            descriptor: descriptor.clone().into(),
        };
        if let Err(error) = self.mutate(call, to.as_str()).await {
            return Err(self.name_taken(to.as_str(), error).await);
        }
        image.row.descriptor = descriptor.into();
        self.verify(image.row).await
    }

    /// Deletes an image.
    ///
    /// # Errors
    /// Another checkout holds it and `force` is not given, or the home is away or refuses.
    pub async fn delete(&self, image: &Image, force: bool) -> Result<(), ApiError> {
        let call = Call::DeleteImage {
            image: image.row.image,
            force,
        };
        self.mutate(call, image.name().as_str()).await
    }

    /// Everything that is leased, as `leases` shows it. `here` tells the folder of a checkout of this device.
    ///
    /// # Errors
    /// The home is away, or shows something that does not verify.
    pub async fn leases(
        &self,
        here: impl Fn(&Image) -> Option<String>,
    ) -> Result<Vec<Value>, ApiError> {
        let rows = self.leased().await;
        let rows = rows.map_err(|error| self.explain(&error, ""))?;
        let mut images = Vec::with_capacity(rows.len());
        for row in rows {
            images.push(self.verify(row).await?);
        }
        images.sort_by(|a, b| a.name().cmp(b.name()));
        let leased = images.iter().filter_map(|image| {
            let lease = image.row.lease.as_ref()?;
            let this = lease.device == self.home.device();
            let mut staged = image.row.staged.iter();
            let staged = staged.find(|staged| staged.checkout == lease.checkout);
            Some(json!({
                "name": image.name().as_str(),
                "image": image.row.image,
                "device": self.device_name(&lease.device),
                "device_id": lease.device,
                "this": this,
                "dir": this.then(|| here(image)).flatten(),
                "until": time_after(lease.remaining_ms),
                "mode": lease.mode,
                "lapsed": lease.lapsed,
                "state": if lease.lapsed { "lapsed" } else { "held" },
                "staged": staged.map(|staged| staged.commit),
                "epoch": lease.epoch,
            }))
        });
        Ok(leased.collect())
    }

    /// A row of `ls`.
    pub fn to_json(&self, image: &Image, checked_out: Option<String>, stale: bool) -> Value {
        let head = image.head.as_ref();
        let lease = image.row.lease.as_ref().map(|lease| {
            json!({
                "device": self.device_name(&lease.device),
                "device_id": lease.device,
                // What remained is counted from when it was told.
                "until": self.answered().map(|at| time(later(at, lease.remaining_ms))),
                "mode": lease.mode,
                "lapsed": lease.lapsed,
            })
        });
        json!({
            "name": image.name().as_str(),
            "image": image.row.image,
            "head": head.map(|head| head.id),
            "seq": head.map(|head| head.record().seq),
            "logical_bytes": head.map_or(0, |head| head.private.logical_bytes),
            "stored_bytes": image.row.stored_bytes,
            "files": head.map_or(0, |head| head.private.files),
            "time": head.map(|head| time(head.record().clock)),
            "lease": lease,
            "checked_out": checked_out,
            "stale": stale,
        })
    }

    /// Verifies what the home says about an image, after having caught up with the roster where needed.
    ///
    /// # Errors
    /// It does not verify.
    pub async fn verify(&self, row: ImageRow) -> Result<Image, ApiError> {
        let opened = match self.open(&row).await? {
            Err(RecordError::RosterUnknown | RecordError::Signature | RecordError::Sealed) => {
                let caught_up = self.home.catch_up().await;
                caught_up.map_err(|error| self.explain(&error, ""))?;
                match self.open(&row).await? {
                    Err(RecordError::Signature) => {
                        self.ask_for_receipts(&row, 1).await?;
                        self.open(&row).await?
                    }
                    other => other,
                }
            }
            other => other,
        };
        checked(row, opened)
    }

    /// Verifies the head that came with a grant; its number is what it says itself. Its receipt is asked for,
    /// and those of commits before it, so that this device can give them back to a home that goes back in time, or
    /// say who can.
    ///
    /// # Errors
    /// It does not verify.
    pub async fn verify_head(&self, mut row: ImageRow) -> Result<Option<OpenCommit>, ApiError> {
        row.seq = row
            .head
            .as_ref()
            .and_then(|head| SignedCommit::decode(head).ok())
            .map(|head| head.record.seq);
        let image = self.verify(row).await?;
        if let Some(head) = image.head_id() {
            let kept = self.state.with(move |db| db.acknowledged_at(head)).await;
            // The grant is as good without.
            if kept.map_err(ApiError::failed)?.is_none()
                && let Err(error) = self.ask_for_receipts(&image.row, RECEIPTS_ASKED).await
            {
                tracing::debug!(?error, "the receipt of a head was not to be had");
            }
        }
        Ok(image.head)
    }

    /// Runs `work` with what this device trusts now.
    pub fn trusted<T>(&self, work: impl FnOnce(&Trust<'_>) -> T) -> T {
        self.home.trusted(work)
    }

    /// The name of a device for people.
    pub fn device_name(&self, device: &DeviceId) -> String {
        device_name(&self.home.objects().keyring(), &self.home.roster(), device)
    }

    /// Opens an image's records; a head whose signer was revoked since counts with the receipt that is kept of it.
    async fn open(&self, row: &ImageRow) -> Result<Opened, ApiError> {
        let open = |position| {
            self.trusted(|trust| {
                let descriptor = trust.open_descriptor(row.image, &row.descriptor)?;
                let head = row.head.as_ref();
                let head = head.map(|head| trust.open_commit(row.image, head, position));
                Ok((descriptor, head.transpose()?))
            })
        };
        let (opened, Some(head)) = (open(None), &row.head) else {
            return Ok(open(None));
        };
        if !matches!(opened, Err(RecordError::Signature)) {
            return Ok(opened);
        }
        let Ok(signed) = SignedCommit::decode(head) else {
            return Ok(opened);
        };
        let commit = commit_id(&signed, &self.home.id());
        let kept = self.state.with(move |db| db.acknowledged_at(commit)).await;
        Ok(match kept.map_err(ApiError::failed)? {
            Some(position) => open(Some(position)),
            None => opened,
        })
    }

    /// Asks for the receipts of an image's newest commits. They are kept as they arrive.
    async fn ask_for_receipts(&self, row: &ImageRow, limit: u32) -> Result<(), ApiError> {
        let call = Call::Log {
            image: row.image,
            before: row.seq.and_then(Seq::next),
            limit,
        };
        let asked = self.home.ask(call).await;
        asked.map(drop).map_err(|error| self.explain(&error, ""))
    }

    /// The image of a name among those that were listed.
    ///
    /// # Errors
    /// There is none.
    pub fn pick(&self, listing: Listing, name: &ImageName) -> Result<Image, ApiError> {
        let stale = listing.stale;
        let found = listing
            .images
            .into_iter()
            .find(|image| image.name() == name);
        found.ok_or_else(|| match stale {
            false => ApiError::not_found(
                format!("There is no image {name}."),
                "`imgctl ls` lists the images.",
            ),
            true => ApiError::not_found(
                format!("This device knows no image {name} without the home."),
                "`imgctl ls` lists those that were seen last.",
            ),
        })
    }

    async fn mutate(&self, call: Call, image: &str) -> Result<(), ApiError> {
        let mutated = self.home.mutate(call).await;
        let mutated = mutated.map_err(|error| self.explain(&error, image))?;
        self.home
            .settle(mutated.request)
            .await
            .map_err(ApiError::failed)
    }

    fn answered(&self) -> MutexGuard<'_, Option<WallMillis>> {
        let answered = self.turns.answered.lock();
        answered.unwrap_or_else(PoisonError::into_inner)
    }

    fn explain(&self, error: &CallError, image: &str) -> ApiError {
        self.home.explain(error, image)
    }
}

/// What an image's records say, or why they do not verify.
type Opened = Result<(OpenDescriptor, Option<OpenCommit>), RecordError>;

/// An image whose records say what its row does.
fn checked(row: ImageRow, opened: Opened) -> Result<Image, ApiError> {
    let (descriptor, head) = opened.map_err(|error| unverified(&error))?;
    if head.as_ref().map(|head| head.record().seq) != row.seq {
        return Err(unverified(&RecordError::Misplaced));
    }
    Ok(Image {
        row,
        descriptor,
        head,
    })
}

impl Image {
    /// Its name.
    pub fn name(&self) -> &ImageName {
        &self.descriptor.name
    }

    /// The id of its newest commit.
    pub fn head_id(&self) -> Option<CommitId> {
        self.head.as_ref().map(|head| head.id)
    }
}

/// A record of the home does not verify.
pub fn unverified(error: &RecordError) -> ApiError {
    ApiError::new(
        Kind::Corrupt,
        format!("The home shows something that does not verify: {error}. It was not used."),
        "Ask whoever runs the home; `imgctl doctor` checks this device.",
    )
}

/// Receipts that are asked for with a grant: a few kilobytes, and more than a backup is usually old.
const RECEIPTS_ASKED: u32 = 32;
/// Most images of one home that a device lists.
const LISTED_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use crate::checkouts::scene::Scene;

    #[tokio::test]
    async fn what_cannot_be_verified_without_the_home_hides_no_other_image() {
        let scene = Scene::new().await;
        let images = scene.images();
        let vm = scene.stolen();
        let mut lost = scene.branch(&vm, "lost", scene.device.home.device());
        // As the head of a device that was revoked since, whose receipt is not here.
        let mut head = lost.head.as_ref().unwrap().signed.to_bytes();
        *head.last_mut().unwrap() ^= 1;
        lost.row.head = Some(head.into());
        let rows = vec![vm.row.clone(), lost.row];
        scene.device.state.now(|db| db.set_images(&rows)).unwrap();
        let listing = images.list_seen().await.unwrap();
        let names: Vec<_> = listing.images.iter().map(|image| image.name()).collect();
        assert!(listing.stale);
        assert_eq!(names, [vm.name()]);
    }
}
