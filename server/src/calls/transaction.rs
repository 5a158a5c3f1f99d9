//! Mutating calls: who calls, what was answered before, the effect, and its outcome, in one
//! transaction.

use std::sync::Arc;

use img_lease::{Caller, Refused};
use img_proto::{Answer, Call, LeaseTerms, Refusal};
use img_records::SigningSecret;
use img_types::limits::INVITE_TTL;
use img_types::{DeviceId, ImageId, RequestId};

use super::{Daemon, commit, enrol, image, lease, pins, steal};
use crate::db::images::{self, Moment, lease_row};
use crate::db::{Needs, Stop, Tx, devices, effects, history, requests, uploads};
use crate::home::Home;

/// How long the answer to a join can be fetched after the invite expired.
const ANSWER_KEPT_MS: u64 = 24 * 3600 * 1000;

/// One mutating call inside its transaction.
pub(super) struct Context<'a> {
    pub(super) tx: &'a mut Tx,
    pub(super) caller: Caller,
    pub(super) moment: Moment,
    pub(super) key: Arc<SigningSecret>,
}

/// Runs a mutating call, or repeats the answer that it got before.
pub(super) async fn mutate(
    home: &Home,
    daemon: Daemon,
    id: RequestId,
    call: Call,
) -> Result<Answer, Stop> {
    let hash = requests::hash(&call)?;
    let prepared = Prepared::new(home, daemon.device, call)?;
    let key = Arc::clone(&home.key);
    let needs = Needs {
        request: (daemon.device, id),
        image: prepared.image(),
    };
    home.db
        .writer()
        .call_needing(needs, move |tx| {
            Box::pin(async move {
                let caller = caller(tx, daemon).await?;
                // A fenced daemon may branch what it has, and is not even told what became of its other calls:
                // their effects are the newer daemon's, who repeats them.
                let may_call = match &prepared.call {
                    Call::Branch { .. } => caller.belongs(),
                    _ => caller.acts(),
                };
                may_call.map_err(refused)?;
                let moment = tx.moment()?;
                let mut context = Context {
                    tx,
                    caller,
                    moment,
                    key,
                };
                let earlier = requests::outcome(context.tx, needs.request, hash).await?;
                if let Some(earlier) = earlier {
                    return lease::standing_of(&mut context, &prepared.call, earlier).await;
                }
                let answer = context.run(prepared).await?;
                requests::keep(context.tx, needs.request, hash, &answer)?;
                Ok(answer)
            })
        })
        .await
}

/// A call whose records have been decoded and verified, which needs no transaction.
struct Prepared {
    call: Call,
    records: Records,
}

/// The verified records of a call.
enum Records {
    None,
    Descriptor(img_records::SignedDescriptor),
    Commit(crate::proposal::Proposed),
    Branch(Box<(img_records::SignedDescriptor, crate::proposal::Proposed)>),
    Readmit(Option<img_records::SignedDescriptor>, Vec<commit::Returned>),
}

impl Prepared {
    fn new(home: &Home, device: DeviceId, call: Call) -> Result<Self, Refusal> {
        use crate::proposal::{Proposed, received_descriptor, returned_descriptor};
        let roster = home.roster()?;
        let branch = |descriptor: &[u8], commit: &[u8]| {
            let descriptor = received_descriptor(descriptor, &roster, device)?;
            let commit = Proposed::received(commit, &roster)?;
            Ok::<_, Refusal>(Records::Branch(Box::new((descriptor, commit))))
        };
        let records = match &call {
            Call::CreateImage { descriptor, .. } | Call::SetDescriptor { descriptor } => {
                Records::Descriptor(received_descriptor(descriptor, &roster, device)?)
            }
            Call::Commit { commit } | Call::Stage { commit } => {
                Records::Commit(Proposed::received(commit, &roster)?)
            }
            Call::Branch {
                descriptor, commit, ..
            } => branch(descriptor, commit)?,
            Call::Steal {
                branch: Some((descriptor, commit)),
                ..
            } => branch(descriptor, commit)?,
            Call::Readmit {
                descriptor,
                commits,
                ..
            } => {
                let descriptor = descriptor.as_deref();
                let descriptor = descriptor.map(|bytes| returned_descriptor(bytes, &roster));
                let commits = commit::returned(&home.key, &roster, commits)?;
                Records::Readmit(descriptor.transpose()?, commits)
            }
            _ => Records::None,
        };
        Ok(Self { call, records })
    }

    /// The image whose rows the call asks for, if it is one under or about a lease.
    fn image(&self) -> Option<ImageId> {
        match (&self.call, &self.records) {
            (
                Call::Acquire { image, .. }
                | Call::Renew { image, .. }
                | Call::Release { image, .. }
                | Call::Steal { image, .. },
                _,
            ) => Some(*image),
            _ => None,
        }
    }
}

impl Context<'_> {
    async fn run(&mut self, prepared: Prepared) -> Result<Answer, Stop> {
        match (prepared.call, prepared.records) {
            (Call::RosterAppend { entry }, _) => enrol::append(self, &entry).await,
            (Call::RegisterInvite { invite, ttl_ms }, _) => {
                enrol::register_invite(self, invite, ttl_ms).await
            }
            (Call::AnswerJoin { invite, answer }, _) => {
                enrol::answer_join(self, invite, answer).await
            }
            (
                Call::CreateImage {
                    checkout, terms, ..
                },
                Records::Descriptor(descriptor),
            ) => image::create(self, &descriptor, checkout, terms).await,
            (Call::SetDescriptor { .. }, Records::Descriptor(descriptor)) => {
                image::set_descriptor(self, &descriptor).await
            }
            (Call::DeleteImage { image, force }, _) => image::delete(self, image, force).await,
            (Call::SetTrace { image, trace }, _) => image::set_trace(self, image, trace).await,
            (
                Call::Acquire {
                    image,
                    checkout,
                    terms,
                    expect_head,
                    take_over,
                },
                _,
            ) => {
                let want = img_lease::grantor::Acquire {
                    checkout,
                    terms: terms_of(terms),
                    expect_head,
                    take_over,
                };
                lease::acquire(self, image, &want).await
            }
            (
                Call::Renew {
                    image,
                    checkout,
                    token,
                    terms,
                },
                _,
            ) => lease::renew(self, image, checkout, token, terms.map(terms_of)).await,
            (
                Call::Release {
                    image,
                    checkout,
                    token,
                },
                _,
            ) => lease::release(self, image, checkout, token).await,
            (
                Call::Steal {
                    image,
                    checkout,
                    terms,
                    expect,
                    reason,
                    ..
                },
                records,
            ) => {
                let branch = match records {
                    Records::Branch(branch) => Some(*branch),
                    _ => None,
                };
                let stolen =
                    steal::steal(self, image, checkout, terms_of(terms), &expect, branch).await?;
                steal::note(self, image, reason).await?;
                Ok(stolen)
            }
            (Call::Pin { commit, checkout }, _) => pins::pin(self, commit, checkout).await,
            (Call::Unpin { commit, checkout }, _) => pins::unpin(self, commit, checkout).await,
            (Call::Commit { .. }, Records::Commit(proposed)) => {
                commit::commit(self, &proposed).await
            }
            (Call::Stage { .. }, Records::Commit(proposed)) => commit::stage(self, &proposed).await,
            (Call::Unstage { image, checkout }, _) => commit::unstage(self, image, checkout).await,
            (Call::Branch { terms, .. }, Records::Branch(branch)) => {
                let (descriptor, first) = *branch;
                commit::branch(self, &descriptor, &first, terms_of(terms)).await
            }
            (Call::Readmit { image, .. }, Records::Readmit(descriptor, commits)) => {
                commit::readmit(self, image, descriptor.as_ref(), &commits).await
            }
            _ => Err(Refusal::Malformed("not a mutating call".to_owned()).into()),
        }
    }

    /// Reads an image that is not deleted.
    pub(super) async fn live_image(&mut self, image: ImageId) -> Result<images::Image, Stop> {
        let image = self.tx.image(image).await?;
        image
            .filter(|image| image.state.tombstone_ms.is_none())
            .ok_or_else(|| Refusal::UnknownImage.into())
    }

    /// Writes an effect in the caller's name.
    pub(super) async fn apply(&mut self, effect: &img_lease::Effect) -> Result<(), Stop> {
        effects::apply(self.tx, effect, self.caller.device).await
    }
}

async fn caller(tx: &mut Tx, daemon: Daemon) -> Result<Caller, Stop> {
    let newest = tx.newest_instance(daemon.device).await?;
    let roster = tx.roster()?;
    let member = roster.member(&daemon.device);
    Ok(Caller {
        device: daemon.device,
        member: member.is_some_and(|member| member.active()),
        instance: daemon.instance,
        newest_instance: newest.unwrap_or(daemon.instance),
        incarnation: tx.standing().incarnation,
    })
}

/// Says a refusal of the lease rules in the protocol's words.
pub(super) fn refused(refused: Refused) -> Stop {
    let refusal = match refused {
        Refused::NotMember => Refusal::NotMember,
        Refused::InstanceFenced => Refusal::InstanceFenced,
        Refused::UnknownImage => Refusal::UnknownImage,
        Refused::NameTaken => Refusal::NameTaken,
        Refused::Leased(lease) => Refusal::Leased(lease_row(&lease)),
        Refused::StagedWork { lease, staged } => Refusal::StagedWork {
            lease: lease_row(&lease),
            staged,
        },
        Refused::TokenStale {
            epoch,
            holder,
            mode,
        } => Refusal::TokenStale {
            epoch,
            holder,
            mode,
        },
        Refused::HeadMoved { head } => Refusal::HeadMoved { head },
        Refused::Changed { .. } => Refusal::Changed,
        Refused::NobodyHolds => Refusal::NobodyHolds,
        Refused::UnknownCommit => Refusal::UnknownCommit,
        Refused::BadRecord(why) => Refusal::BadRecord(why.to_owned()),
        Refused::LogMoved { position } => Refusal::LogMoved { position },
        Refused::Exhausted => Refusal::OverLimit("the image's numbers are used up".to_owned()),
    };
    refusal.into()
}

/// The terms of a call as the lease rules take them.
pub(super) fn terms_of(terms: LeaseTerms) -> img_lease::Terms {
    img_lease::Terms {
        ttl_ms: terms.ttl_ms,
        mode: terms.mode,
    }
}

/// What happens by itself as time passes: leases lapse, staged records, pins, invites, sessions and
/// outcomes run out. It also persists the running clock.
pub(crate) async fn tidy(home: &Home) -> Result<(), Stop> {
    home.audit.flush(home.db.writer()).await?;
    let founded = home.roster().is_ok();
    home.db
        .writer()
        .call(move |tx| {
            Box::pin(async move {
                requests::expire(tx).await?;
                uploads::expire(tx).await?;
                history::expire_pins(tx).await?;
                let invite_ms = u64::try_from(INVITE_TTL.as_millis()).unwrap_or(u64::MAX);
                devices::expire_invites(tx, invite_ms + ANSWER_KEPT_MS).await?;
                if !founded {
                    return Ok(());
                }
                for image in images::overdue(tx).await? {
                    if let Some(image) = tx.image(image).await? {
                        effects::write_state(tx, &image.state).await?;
                    }
                }
                Ok(())
            })
        })
        .await
}
