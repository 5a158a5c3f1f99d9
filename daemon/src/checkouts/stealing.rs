//! Taking an image over from the checkout that holds it, as a person asks: the thief's side.
//!
//! What the person is shown is what the home is told to expect; if any of it has changed the home refuses, and
//! the person hears the new facts and decides again. With a branch, one call steals the image and keeps the
//! loser's work under another name. The call is journaled like every grant: a steal whose answer nobody waits
//! for any more is given back.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use img_proto::{Call, LeaseRow, Refusal, StagedRow, StealExpectation};
use img_records::Parent;
use img_seal::seal_field;
use img_types::{CheckoutId, ImageId, ImageName};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Checkout, Checkouts, OpenRequest, Shared};
use crate::branch::{BranchDraft, NewBranch, free_name};
use crate::commits::{REASON_PURPOSE, RecordError};
use crate::error::{ApiError, Kind};
use crate::events::{Reporter, time, time_after};
use crate::home::{CallError, Home};
use crate::images::{Image, Images};

/// A steal that a person wants.
#[derive(Debug, Clone)]
pub struct StealRequest {
    /// The checkout that it is for.
    pub open: OpenRequest,
    /// Whether the loser's work becomes a branch, and under which name.
    pub branch: Option<BranchChoice>,
    /// Why, for the loser to read.
    pub reason: String,
}

/// How the branch that keeps the loser's work is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BranchChoice {
    /// As the person says.
    Named(ImageName),
    /// After image and loser.
    Free,
}

/// What a thief saw, and what the call takes along.
#[derive(Debug, Clone)]
pub(super) struct Theft {
    expect: StealExpectation,
    reason: Bytes,
    branch: Option<(ImageName, NewBranch)>,
}

impl Theft {
    /// The call that steals for a checkout.
    pub(super) fn call(&self, image: ImageId, checkout: CheckoutId, open: &OpenRequest) -> Call {
        Call::Steal {
            image,
            checkout,
            terms: open.terms,
            expect: self.expect,
            reason: self.reason.clone(),
            branch: self.branch.as_ref().map(|(_, branch)| {
                (
                    branch.descriptor.to_bytes().into(),
                    branch.first.signed.to_bytes().into(),
                )
            }),
        }
    }
}

impl Checkouts {
    /// Takes an image over from whoever holds it and checks it out. `lines` is told from whom, before.
    ///
    /// # Errors
    /// Nobody holds it, this device does, or the lease has changed meanwhile.
    pub async fn steal(
        &self,
        request: StealRequest,
        reporter: &Reporter,
        lines: &mpsc::Sender<Value>,
    ) -> Result<Value, ApiError> {
        let name = request.open.name.clone();
        let mut tries = 0;
        loop {
            let image = self.shared.images.find(&name).await?;
            self.refuse_second(&image)?;
            let lease = image.row.lease.clone().ok_or_else(|| nobody(&name))?;
            let theft = self.plan(&image, &lease, &request).await?;
            let told = self.facts(&image, &lease, theft.branch.as_ref());
            if tries == 0 {
                // Who has hung up does not want to know.
                drop(lines.send(json!({ "takes_from": told })).await);
            }
            let opened = self
                .open_by(request.open.clone(), Some(&theft), reporter)
                .await;
            match opened {
                Ok(checkout) => return Ok(stolen(&checkout, &told)),
                // Somebody made an image of the name that was free.
                Err(error)
                    if error.kind == Kind::NameTaken
                        && request.branch == Some(BranchChoice::Free)
                        && tries < NAMES_TRIED_MAX =>
                {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A steal that the home refused, for a person: with what is the case now.
    pub(super) async fn explain_theft(
        &self,
        error: CallError,
        name: &ImageName,
        theft: &Theft,
    ) -> ApiError {
        match error {
            CallError::Refused(Refusal::NameTaken) => {
                let branch = theft.branch.as_ref().map_or(name, |(branch, _)| branch);
                self.shared.home.explain(&error, branch.as_str())
            }
            CallError::Refused(Refusal::NobodyHolds) => nobody(name),
            CallError::Refused(Refusal::Changed) => {
                let Ok(image) = self.shared.images.find(name).await else {
                    return self.shared.home.explain(&CallError::Away, name.as_str());
                };
                let Some(lease) = &image.row.lease else {
                    return nobody(name);
                };
                let holder = self.shared.images.device_name(&lease.device);
                let facts = self.facts(&image, lease, None);
                ApiError::new(
                    Kind::Leased,
                    format!(
                        "Something changed at the home while {name} was to be taken over; nothing was taken. Now {} holds it{}.",
                        holder,
                        until(lease)
                    ),
                    format!("Type the same command again to take it over from {holder} as it is now."),
                )
                .with("holder", holder)
                .with("takes_from", facts)
            }
            error => self.shared.home.explain(&error, name.as_str()),
        }
    }

    async fn plan(
        &self,
        image: &Image,
        lease: &LeaseRow,
        request: &StealRequest,
    ) -> Result<Theft, ApiError> {
        let shared = &self.shared;
        let staged = staged_by(image, lease.checkout);
        let expect = StealExpectation {
            epoch: image.row.epoch,
            head: image.head_id(),
            staged: staged.map(|staged| staged.commit),
        };
        let branch = match &request.branch {
            None => None,
            Some(choice) => {
                let loser = shared.images.device_name(&lease.device);
                let name = match choice {
                    BranchChoice::Named(name) => name.clone(),
                    BranchChoice::Free => {
                        let stem = format!("{}-{loser}", image.name());
                        shared.free_name(&stem).await?
                    }
                };
                let branch = self.keep_work(image, lease, staged, &name, &request.reason);
                let branch = branch.await?;
                Some((name, branch))
            }
        };
        let reason = seal_reason(&shared.home, image.row.image, &request.reason);
        Ok(Theft {
            expect,
            reason: reason.map_err(ApiError::failed)?,
            branch,
        })
    }

    /// The branch that keeps the loser's work: what it has staged, else the commit that it stands on.
    async fn keep_work(
        &self,
        image: &Image,
        lease: &LeaseRow,
        staged: Option<&StagedRow>,
        name: &ImageName,
        reason: &str,
    ) -> Result<NewBranch, ApiError> {
        let (state, parent) = match (staged, &image.head) {
            (Some(staged), _) => {
                let state = self.shared.images.open_staged(image, staged).await?;
                let parent = Images::leaving(image, &state)?;
                (state, parent)
            }
            (None, Some(head)) => {
                let parent = Parent {
                    image: image.row.image,
                    commit: head.id,
                };
                (head.clone(), parent)
            }
            (None, None) => return Err(nobody(image.name())),
        };
        let (loser, thief) = (
            self.shared.images.device_name(&lease.device),
            self.shared.images.device_name(&self.shared.home.device()),
        );
        let mut message = format!("{loser}'s work when {thief} took {} over", image.name());
        if !reason.is_empty() {
            message.push_str(": ");
            message.push_str(reason);
        }
        let draft = BranchDraft {
            checkout: lease.checkout,
            message,
            ..BranchDraft::of(&image.descriptor, name, &state, parent)
        };
        draft.sign(&self.shared.home).map_err(ApiError::failed)
    }

    /// From whom an image is taken, as `docs/control-api.md` shows it.
    fn facts(
        &self,
        image: &Image,
        lease: &LeaseRow,
        branch: Option<&(ImageName, NewBranch)>,
    ) -> Value {
        let staged = staged_by(image, lease.checkout).and_then(|staged| {
            let images = &self.shared.images;
            let open = images.trusted(|trust| trust.reopen_commit(image.row.image, &staged.record));
            let opened = open.ok()?;
            Some(json!({ "commit": opened.id, "time": time(opened.record().clock) }))
        });
        json!({
            "name": image.name().as_str(),
            "device": self.shared.images.device_name(&lease.device),
            "device_id": lease.device,
            "until": time_after(lease.remaining_ms),
            "lapsed": lease.lapsed,
            "mode": lease.mode,
            "head": image.head_id(),
            "seq": image.row.seq,
            "staged": staged,
            "branch": branch.map(|(name, branch)| json!({
                "name": name.as_str(),
                "image": branch.image(),
                "commit": branch.first.id,
            })),
        })
    }
}

impl Shared {
    /// A name that no image has.
    pub(super) async fn free_name(&self, stem: &str) -> Result<ImageName, ApiError> {
        let listing = self.images.list().await?;
        let taken = listing.images.iter().map(|image| image.name().as_str());
        let taken: BTreeSet<&str> = taken.collect();
        free_name(stem, &taken)
            .ok_or_else(|| ApiError::usage(format!("No image can be called {stem}.")))
    }
}

/// The record that a checkout has staged.
fn staged_by(image: &Image, checkout: CheckoutId) -> Option<&StagedRow> {
    let mut staged = image.row.staged.iter();
    staged.find(|staged| staged.checkout == checkout)
}

fn seal_reason(home: &Home, image: ImageId, reason: &str) -> Result<Bytes, RecordError> {
    home.trusted(|trust| {
        let key = trust.keys.record(trust.keys.newest(), &image);
        let key = key.ok_or(RecordError::Sealed)?;
        Ok(seal_field(&key, REASON_PURPOSE, image.as_bytes(), reason.as_bytes()).into())
    })
}

fn stolen(checkout: &Arc<Checkout>, facts: &Value) -> Value {
    let mut done = checkout.to_json();
    if let Value::Object(fields) = &mut done {
        fields.insert("takes_from".into(), facts.clone());
        fields.insert("branch".into(), facts["branch"].clone());
    }
    done
}

fn until(lease: &LeaseRow) -> String {
    if lease.lapsed {
        ", although its lease has lapsed".to_owned()
    } else {
        format!(" until {}", time_after(lease.remaining_ms))
    }
}

fn nobody(name: &ImageName) -> ApiError {
    let mut error = ApiError::usage(format!(
        "Nobody holds {name}: there is nobody to steal it from."
    ));
    error.hint = format!("`imgctl checkout {name}` takes its lease.");
    error
}

/// How often another free name is tried when somebody was faster.
pub(super) const NAMES_TRIED_MAX: u32 = 5;
