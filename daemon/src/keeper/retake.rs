//! Leases that ended with the home's database, and are taken anew.
//!
//! A home that was restored has a new incarnation: the tokens of before are void although nobody took the leases.
//! A checkout whose base is the head there goes on under a new lease, without anybody asking; where it is not, or
//! somebody else was first, the checkout is an orphan.

use std::sync::Arc;

use img_lease::Terms;
use img_lease::holder::{Event, Granted, Holder, Kind, Moment};
use img_proto::{Answer, Call, LeaseTerms, Refusal};
use img_records::{SignedCommit, commit_id};
use img_types::{CheckoutId, CommitId, DeviceId, ImageId, RequestId, Token};

use super::{Called, Kept, Task, Trouble, luck, write_down};
use crate::home::{CallError, Home, Mutated};

/// A lease that is taken anew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retake {
    image: ImageId,
    checkout: CheckoutId,
    void: Token,
    terms: Terms,
    sent: Moment,
}

impl Retake {
    /// The lease of a checkout, if its token is void.
    pub(super) fn due(home: &Home, holder: &Holder, now: Moment) -> Option<Self> {
        let tenure = holder.tenure()?;
        home.is_void(&tenure.token).then(|| Self {
            image: holder.image(),
            checkout: holder.checkout(),
            void: tenure.token,
            terms: tenure.terms,
            sent: now,
        })
    }

    /// Of which checkout.
    pub(super) fn checkout(&self) -> CheckoutId {
        self.checkout
    }

    /// Asks for it, while the head is what the checkout stands on.
    pub(super) async fn ask(self, home: Arc<Home>, holder: Holder) -> Called {
        let call = Call::Acquire {
            image: self.image,
            checkout: self.checkout,
            terms: LeaseTerms {
                ttl_ms: self.terms.ttl_ms,
                mode: self.terms.mode,
            },
            expect_head: holder.base(),
            take_over: false,
        };
        Called::Retaken(self, home.acquire(call).await)
    }
}

impl Task {
    /// Takes the home's answer to a lease that was asked for anew.
    pub(super) async fn retaken(
        &mut self,
        retake: Retake,
        outcome: Result<Mutated, CallError>,
    ) -> Result<(), Trouble> {
        let mutated = match outcome {
            Ok(mutated) => mutated,
            Err(CallError::Refused(refusal)) if is_final(&refusal) => {
                let rival = rival(&refusal);
                let stale = Event::TokenStale {
                    image: retake.image,
                    token: retake.void,
                    rival,
                };
                let applied = self.apply(retake.checkout, stale).await;
                return applied
                    .map(drop)
                    .map_err(|error| Trouble::Stuck(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let taken = match grant(&self.home, &retake, &mutated.answer) {
            Some(granted) => self.enter(&retake, granted).await?,
            None => false,
        };
        if !taken && let Answer::Granted { token, .. } = mutated.answer {
            // It ended meanwhile, or went on as another image.
            let release = Call::Release {
                image: retake.image,
                checkout: retake.checkout,
                token,
            };
            let released = self.home.mutate(release).await?;
            self.settle(released.request).await?;
        }
        self.settle(mutated.request).await
    }

    /// From a void token to the new one in one step, so that no crash leaves an orphan between them.
    async fn enter(&mut self, retake: &Retake, granted: Granted) -> Result<bool, Trouble> {
        let Some(kept) = self.kept.get_mut(&retake.checkout) else {
            return Ok(false);
        };
        let stuck = |error: &dyn std::fmt::Display| Trouble::Stuck(error.to_string());
        let before = kept.holder.kind();
        let mut holder = kept.holder.clone();
        let superseded = holder.apply(Event::TokenStale {
            image: retake.image,
            token: retake.void,
            rival: None,
        });
        if !superseded.map_err(|error| stuck(&error))? {
            return Ok(false);
        }
        let taken = holder.apply(Event::Granted(granted)).is_ok();
        write_down(&self.state, &holder)
            .await
            .map_err(|error| stuck(&error))?;
        kept.holder = holder;
        self.tell(retake.checkout, if taken { Kind::Orphan } else { before });
        self.show();
        Ok(taken)
    }

    async fn settle(&self, request: RequestId) -> Result<(), Trouble> {
        let settled = self.home.settle(request).await;
        settled.map_err(|error| Trouble::Stuck(error.to_string()))
    }
}

impl Kept {
    /// Whether the lease is to be taken anew before anything else.
    pub(super) fn retake(&self, home: &Home, now: Moment) -> Option<Retake> {
        Retake::due(home, &self.holder, now)
    }
}

/// Whether asking again would not help.
fn is_final(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::HeadMoved { .. }
            | Refusal::Leased(_)
            | Refusal::StagedWork { .. }
            | Refusal::UnknownImage
    )
}

fn rival(refusal: &Refusal) -> Option<DeviceId> {
    match refusal {
        Refusal::Leased(lease) | Refusal::StagedWork { lease, .. } => Some(lease.device),
        _ => None,
    }
}

fn grant(home: &Home, retake: &Retake, answer: &Answer) -> Option<Granted> {
    let Answer::Granted {
        token,
        ttl_ms,
        head,
        current: true,
        ..
    } = answer
    else {
        return None;
    };
    let head: Option<CommitId> = match head {
        Some(head) => Some(commit_id(&SignedCommit::decode(head).ok()?, &home.id())),
        None => None,
    };
    Some(Granted {
        token: *token,
        terms: Terms {
            ttl_ms: *ttl_ms,
            mode: retake.terms.mode,
        },
        head,
        sent: retake.sent,
        luck: luck(),
    })
}
