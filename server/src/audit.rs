//! What is written down of refused calls, so that an admin can see who tried what.
//!
//! Entries wait in memory for the minute's work, equal ones as one, so that a stranger's attempts cost no
//! sync each. A crash loses those of the last minute; they prove nothing anyway.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use img_proto::{Call, Refusal};
use img_records::{SignedCommit, SignedDescriptor};
use img_types::{DeviceId, ImageId};

use crate::db::audit::{self, Noted};
use crate::db::{Stop, Writer};

/// Entries of devices that wait at a time.
const WAITING_MAX: usize = 1_024;
/// Entries of strangers that wait at a time.
const STRANGERS_WAITING_MAX: usize = 64;

/// Entries that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    waiting: Mutex<BTreeSet<Noted>>,
}

/// What a call is about, kept while it is decided.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    call: &'static str,
    image: Concerns,
}

#[derive(Debug, Clone)]
enum Concerns {
    Nothing,
    Image(ImageId),
    Commit(Bytes),
    Descriptor(Bytes),
}

impl Audit {
    /// Notes a refusal, unless it is an everyday one.
    pub(crate) fn refused(&self, device: Option<DeviceId>, subject: &Subject, why: &Refusal) {
        if !(device.is_none() || is_notable(why)) {
            return;
        }
        let entry = Noted {
            device,
            image: subject.image(),
            call: subject.call,
            refusal: Some(why.to_string()),
            reason: Bytes::new(),
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let max = match device {
            Some(_) => WAITING_MAX,
            None => STRANGERS_WAITING_MAX,
        };
        let same_kind = waiting
            .iter()
            .filter(|entry| entry.device.is_some() == device.is_some());
        if same_kind.count() < max {
            waiting.insert(entry);
        }
    }

    /// Writes what waits.
    pub(crate) async fn flush(&self, writer: &Writer) -> Result<(), Stop> {
        let waiting = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            mem::take(&mut *waiting)
        };
        if waiting.is_empty() {
            return Ok(());
        }
        let entries: Vec<_> = waiting.into_iter().collect();
        writer
            .call(move |tx| Box::pin(async move { audit::insert(tx, &entries).await }))
            .await
    }
}

impl Subject {
    /// Takes what a call is about.
    pub(crate) fn of(call: &Call) -> Self {
        use Concerns::{Commit, Descriptor, Image, Nothing};
        let (call, image) = match call {
            Call::Hello { .. } => ("Hello", Nothing),
            Call::Found { .. } => ("Found", Nothing),
            Call::JoinRequest { .. } => ("JoinRequest", Nothing),
            Call::JoinPoll { .. } => ("JoinPoll", Nothing),
            Call::RecoverRoster { .. } => ("RecoverRoster", Nothing),
            Call::RecoverAppend { .. } => ("RecoverAppend", Nothing),
            Call::RosterAppend { .. } => ("RosterAppend", Nothing),
            Call::RegisterInvite { .. } => ("RegisterInvite", Nothing),
            Call::AnswerJoin { .. } => ("AnswerJoin", Nothing),
            Call::CreateImage { descriptor, .. } => ("CreateImage", Descriptor(descriptor.clone())),
            Call::SetDescriptor { descriptor } => ("SetDescriptor", Descriptor(descriptor.clone())),
            Call::DeleteImage { image, .. } => ("DeleteImage", Image(*image)),
            Call::Acquire { image, .. } => ("Acquire", Image(*image)),
            Call::Renew { image, .. } => ("Renew", Image(*image)),
            Call::Release { image, .. } => ("Release", Image(*image)),
            Call::Steal { image, .. } => ("Steal", Image(*image)),
            Call::Pin { .. } => ("Pin", Nothing),
            Call::Unpin { .. } => ("Unpin", Nothing),
            Call::Stage { commit } => ("Stage", Commit(commit.clone())),
            Call::Unstage { image, .. } => ("Unstage", Image(*image)),
            Call::Commit { commit } => ("Commit", Commit(commit.clone())),
            Call::Branch { commit, .. } => ("Branch", Commit(commit.clone())),
            Call::Readmit { image, .. } => ("Readmit", Image(*image)),
            Call::SetTrace { image, .. } => ("SetTrace", Image(*image)),
            Call::Admin { .. } => ("Admin", Nothing),
            Call::ShowReceipt { .. } => ("ShowReceipt", Nothing),
            _ => ("read", Nothing),
        };
        Self { call, image }
    }

    /// Fetching and pushing objects, which concern no image.
    pub(crate) fn objects() -> Self {
        Self {
            call: "objects",
            image: Concerns::Nothing,
        }
    }

    fn image(&self) -> Option<ImageId> {
        match &self.image {
            Concerns::Nothing => None,
            Concerns::Image(image) => Some(*image),
            Concerns::Commit(commit) => {
                let commit = SignedCommit::decode(commit).ok()?;
                Some(commit.record.image)
            }
            Concerns::Descriptor(descriptor) => {
                let descriptor = SignedDescriptor::decode(descriptor).ok()?;
                Some(descriptor.record.image)
            }
        }
    }
}

/// Whether a member's refusal tells of a conflict or an attempt, and not of everyday timing.
fn is_notable(why: &Refusal) -> bool {
    matches!(
        why,
        Refusal::NotMember
            | Refusal::NotAdmin
            | Refusal::InstanceFenced
            | Refusal::WentBack { .. }
            | Refusal::BadRecord(_)
            | Refusal::RequestReused
            | Refusal::Leased(_)
            | Refusal::StagedWork { .. }
            | Refusal::TokenStale { .. }
            | Refusal::HeadMoved { .. }
            | Refusal::Changed
            | Refusal::NobodyHolds
            | Refusal::LogMoved { .. }
    )
}
