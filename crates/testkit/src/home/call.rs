//! Calls as they travel, answers, and what each call does in its transaction.

use img_lease::grantor::{self, Acquire, Claim, Expectation, History};
use img_lease::{Caller, Effect, Grant, Head, Proposal, Refused, Terms};
use img_records::LogKind;
use img_types::{
    CheckoutId, CommitId, DeviceId, Epoch, ImageId, Incarnation, Instance, LogPosition, LogRoot,
    NameTag, Seq, Token,
};

use super::{CommitRow, ImageRow, ModelHome, Mutant, NO_IMAGE};

/// A daemon that has said Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Whose key the connection was made with.
    pub device: DeviceId,
    /// Which of its daemon starts this is.
    pub instance: Instance,
}

/// A place in a home's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standing {
    /// The home's database.
    pub incarnation: Incarnation,
    /// Number of log entries.
    pub position: LogPosition,
    /// Hash chain over these entries.
    pub root: LogRoot,
}

/// The answer to Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Greeting {
    /// The number of this daemon start.
    pub instance: Instance,
    /// The home's standing at the position that the device had seen.
    pub at_seen: Option<Standing>,
}

/// What an image is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Naming {
    /// The image.
    pub image: ImageId,
    /// The tag of its name.
    pub tag: NameTag,
}

/// What the home answers for with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Where the home stood with the commit.
    pub at: Standing,
    /// The image.
    pub image: ImageId,
    /// The commit's number.
    pub seq: Seq,
    /// The commit.
    pub commit: CommitId,
}

/// A mutating call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "as in the protocol")]
pub enum Call {
    CreateImage {
        name: Naming,
        checkout: CheckoutId,
        terms: Terms,
    },
    Acquire {
        image: ImageId,
        want: Acquire,
    },
    Renew {
        image: ImageId,
        checkout: CheckoutId,
        token: Token,
        terms: Option<Terms>,
    },
    Release {
        image: ImageId,
        checkout: CheckoutId,
        token: Token,
    },
    Steal {
        image: ImageId,
        checkout: CheckoutId,
        terms: Terms,
        expect: Expectation,
        /// The name and first commit of a branch that keeps the loser's work.
        branch: Option<(Naming, Proposal)>,
    },
    Commit(Proposal),
    Stage(Proposal),
    Unstage {
        image: ImageId,
        checkout: CheckoutId,
    },
    Branch {
        name: Naming,
        first: Proposal,
        terms: Terms,
    },
    Readmit {
        image: ImageId,
        commits: Vec<(Proposal, Receipt)>,
    },
    DeleteImage {
        image: ImageId,
        force: bool,
    },
    Pin {
        commit: CommitId,
        checkout: CheckoutId,
    },
    Unpin {
        commit: CommitId,
        checkout: CheckoutId,
    },
    Revoke {
        device: DeviceId,
        at: LogPosition,
    },
}

/// A successful answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "as in the protocol")]
pub enum Answer {
    Granted {
        token: Token,
        ttl_ms: u64,
        head: Option<Head>,
        /// Whether the grant still stands; a first answer's does.
        current: bool,
    },
    Renewed {
        ttl_ms: u64,
    },
    Committed {
        receipt: Receipt,
    },
    Branched {
        token: Token,
        ttl_ms: u64,
        receipt: Receipt,
    },
    Done,
}

/// Why a call was refused; it changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// The rules refuse it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The request id belongs to another content.
    #[error("the request id is another call's")]
    RequestReused,
    /// The home's log is not what the device has seen.
    #[error("the home went back")]
    WentBack {
        /// The home's log at that position, if it gets that far.
        at_seen: Option<Standing>,
    },
}

impl ModelHome {
    pub(super) fn run(&mut self, caller: &Caller, call: &Call) -> Result<Answer, Failure> {
        match call {
            Call::CreateImage {
                name,
                checkout,
                terms,
            } => self.create(caller, *name, *checkout, *terms),
            Call::Acquire { image, want } => {
                let state = self.shown_to_acquire(self.live_image(*image)?, want);
                let grant = grantor::acquire(&state, caller, &self.shown_acquire(want))?;
                let answer = self.granted(caller, &grant);
                grantor::acquire(&state, caller, want)?;
                Ok(answer)
            }
            Call::Renew {
                image,
                checkout,
                token,
                terms,
            } => {
                let state = self.live_image(*image)?;
                let grant = grantor::renew(&state, caller, *checkout, *token, *terms)?;
                self.apply(&grant.effect, caller.device);
                Ok(Answer::Renewed {
                    ttl_ms: grant.ttl_ms,
                })
            }
            Call::Release {
                image,
                checkout,
                token,
            } => {
                let Some(state) = self.image(*image) else {
                    return Ok(Answer::Done);
                };
                let effect = grantor::release(state, caller, *checkout, *token)?;
                let effect = effect.map(|effect| self.written_release(effect));
                self.done(caller, effect)
            }
            Call::Steal {
                image,
                checkout,
                terms,
                expect,
                branch,
            } => {
                let state = self.live_image(*image)?;
                let Some((name, first)) = branch else {
                    let grant = grantor::steal(&state, caller, *checkout, *terms, expect)?;
                    return Ok(self.granted(caller, &grant));
                };
                let loser = state.lease.map(|lease| lease.device);
                let member = loser.is_some_and(|loser| self.is_member(loser));
                let stolen = grantor::steal_to_branch(
                    &state, caller, *checkout, *terms, expect, first, member,
                )?;
                let answer = self.granted(caller, &stolen.grant);
                self.new_branch(caller, *name, first, &stolen.branch)?;
                Ok(answer)
            }
            Call::Commit(proposal) => self.move_head(caller, proposal),
            Call::Stage(proposal) => {
                let state = self.image(proposal.image).cloned();
                let history = state.map(|state| self.shown_history(&state, proposal));
                let state = self.live_image(proposal.image)?;
                let history = history.unwrap_or_else(|| self.history(proposal));
                let effect = grantor::stage(&state, caller, proposal, history)?;
                self.done(caller, effect)
            }
            Call::Unstage { image, checkout } => {
                let Some(state) = self.image(*image) else {
                    return Ok(Answer::Done);
                };
                let effect = grantor::unstage(state, caller, *checkout)?;
                self.done(caller, effect)
            }
            Call::Branch { name, first, terms } => self.branch(caller, *name, first, *terms),
            Call::Readmit { image, commits } => self.readmit(caller, *image, commits),
            Call::DeleteImage { image, force } => {
                let state = self.image(*image).ok_or(Refused::UnknownImage)?;
                let effect = grantor::delete(state, caller, *force)?;
                self.done(caller, effect)
            }
            Call::Pin { commit, checkout } => {
                let known = self.commits.contains_key(commit);
                let pin = grantor::pin(caller, *commit, *checkout, known)?;
                self.pins.insert((*commit, *checkout), pin);
                Ok(Answer::Done)
            }
            Call::Unpin { commit, checkout } => {
                let key = (*commit, *checkout);
                if grantor::unpin(self.pins.get(&key), caller)? {
                    self.pins.remove(&key);
                }
                Ok(Answer::Done)
            }
            Call::Revoke { device, at } => self.revoke(caller, *device, *at),
        }
    }

    /// The answer to a repeated call: as before, but a lease is told as it stands now.
    pub(super) fn standing_of(
        &self,
        caller: &Caller,
        call: &Call,
        earlier: Answer,
    ) -> Result<Answer, Failure> {
        let (token, head) = match (earlier, call) {
            (Answer::Granted { token, head, .. }, _) => (token, head),
            (
                Answer::Renewed { .. },
                Call::Renew {
                    image,
                    checkout,
                    token,
                    ..
                },
            ) => {
                let claim = Claim {
                    token: *token,
                    device: caller.device,
                    checkout: *checkout,
                };
                let state = self.live_image(*image)?;
                let lease = grantor::current(&state, caller, &claim)?;
                return Ok(Answer::Renewed {
                    ttl_ms: lease.remaining_ms,
                });
            }
            (Answer::Branched { receipt, .. }, Call::Branch { first, .. }) => {
                return Ok(self.branched_before(caller, first, receipt));
            }
            (earlier, _) => return Ok(earlier),
        };
        let stands = match call {
            Call::Acquire { image, want } => Some((image, want.checkout)),
            Call::Steal {
                image, checkout, ..
            } => Some((image, *checkout)),
            Call::CreateImage { name, checkout, .. } => Some((&name.image, *checkout)),
            _ => None,
        };
        let stands = stands.and_then(|(image, checkout)| {
            let state = self.image(*image)?;
            grantor::grant_stands(state, caller, checkout, token).then_some(state)
        });
        Ok(match stands {
            Some(state) => Answer::Granted {
                token,
                ttl_ms: state.lease.map_or(0, |lease| lease.remaining_ms),
                head: state.head,
                current: true,
            },
            None => Answer::Granted {
                token,
                ttl_ms: 0,
                head,
                current: false,
            },
        })
    }

    fn create(
        &mut self,
        caller: &Caller,
        name: Naming,
        checkout: CheckoutId,
        terms: Terms,
    ) -> Result<Answer, Failure> {
        let named = self.named(name.tag);
        let creation = grantor::create(named, caller, name.image, checkout, terms)?;
        if let Some(replaced) = &creation.replaces {
            if let Some(row) = self.images.get_mut(&replaced.image) {
                row.state = replaced.clone();
            }
            let (image, epoch) = (replaced.image, replaced.epoch);
            self.log_line(LogKind::Delete, image, [0; 32], caller.device, epoch);
        }
        if creation.new {
            self.insert(caller, name)?;
        }
        Ok(self.granted(caller, &creation.grant))
    }

    fn move_head(&mut self, caller: &Caller, proposal: &Proposal) -> Result<Answer, Failure> {
        let known = self.commits.get(&proposal.commit);
        if let Some(known) = known.filter(|_| !self.has(Mutant::NoIdempotency)) {
            return Ok(Answer::Committed {
                receipt: known.receipt,
            });
        }
        let state = self.live_image(proposal.image)?;
        let history = self.shown_history(&state, proposal);
        let (image, shown_caller, shown) = self.shown_to_commit(&state, caller, proposal);
        let Some(effect) = grantor::commit(&image, &shown_caller, &shown, history)? else {
            // Only a home with a fault knows a commit that has no row.
            return Ok(Answer::Committed {
                receipt: self.receipt(proposal),
            });
        };
        let effect = self.written_commit(&state, effect);
        Ok(Answer::Committed {
            receipt: self.acknowledge(caller, &effect, proposal),
        })
    }

    fn branch(
        &mut self,
        caller: &Caller,
        name: Naming,
        first: &Proposal,
        terms: Terms,
    ) -> Result<Answer, Failure> {
        let known = self.commits.get(&first.commit);
        if let Some(known) = known.filter(|_| !self.has(Mutant::NoIdempotency)) {
            return Ok(self.branched_before(caller, first, known.receipt));
        }
        let history = History {
            has_commit: false,
            has_parent: true,
        };
        let grant = grantor::branch(caller, first, terms, history)?;
        let grant = grant.ok_or(Refused::BadRecord("a known commit has no row"))?;
        let receipt = self.new_branch(caller, name, first, &grant.effect)?;
        Ok(Answer::Branched {
            token: grant.token,
            ttl_ms: grant.ttl_ms,
            receipt,
        })
    }

    fn branched_before(&self, caller: &Caller, first: &Proposal, receipt: Receipt) -> Answer {
        let holder = (caller.device, first.checkout);
        let lease = self.image(first.image).and_then(|image| image.lease);
        let lease = lease.filter(|lease| (lease.device, lease.checkout) == holder);
        Answer::Branched {
            token: Token {
                incarnation: caller.incarnation,
                epoch: lease.map_or(Epoch(1), |lease| lease.epoch),
            },
            ttl_ms: lease.map_or(0, |lease| lease.remaining_ms),
            receipt,
        }
    }

    fn new_branch(
        &mut self,
        caller: &Caller,
        name: Naming,
        first: &Proposal,
        effect: &Effect,
    ) -> Result<Receipt, Failure> {
        if name.image != first.image {
            return Err(Refused::BadRecord("name and commit are of two images").into());
        }
        if self.named(name.tag).is_some() {
            return Err(Refused::NameTaken.into());
        }
        self.insert(caller, name)?;
        Ok(self.acknowledge(caller, effect, first))
    }

    fn readmit(
        &mut self,
        caller: &Caller,
        image: ImageId,
        commits: &[(Proposal, Receipt)],
    ) -> Result<Answer, Failure> {
        let fits = |(proposal, receipt): &(Proposal, Receipt)| {
            (receipt.commit, receipt.image, receipt.seq)
                == (proposal.commit, proposal.image, proposal.seq)
        };
        if !commits.iter().all(fits) {
            return Err(Refused::BadRecord("a receipt is another commit's").into());
        }
        let state = self.live_image(image)?;
        let proposals = commits.iter().map(|(proposal, _)| *proposal);
        let unknown: Vec<_> = proposals
            .filter(|proposal| !self.commits.contains_key(&proposal.commit))
            .collect();
        let Some(effect) = grantor::readmit(&state, caller, &unknown)? else {
            return Ok(Answer::Done);
        };
        let effect = self.written_readmit(&state, effect);
        self.apply(&effect, caller.device);
        for proposal in unknown {
            let receipt = self.receipt(&proposal);
            self.commits
                .insert(proposal.commit, CommitRow { proposal, receipt });
        }
        Ok(Answer::Done)
    }

    fn revoke(
        &mut self,
        caller: &Caller,
        device: DeviceId,
        at: LogPosition,
    ) -> Result<Answer, Failure> {
        caller.acts()?;
        let own = self.log.iter().rposition(|row| row.entry.device == device);
        grantor::revocable(at, own.map(|before| LogPosition(before as u64 + 1)))?;
        let live = self.images().filter(|image| image.tombstone_ms.is_none());
        let effects: Vec<_> = live
            .filter_map(|image| grantor::revoke(image, device))
            .collect();
        for effect in effects {
            self.apply(&effect, device);
        }
        self.members.remove(&device);
        let (subject, by) = (*device.as_bytes(), caller.device);
        self.log_line(LogKind::Roster, NO_IMAGE, subject, by, Epoch(0));
        Ok(Answer::Done)
    }

    fn insert(&mut self, caller: &Caller, name: Naming) -> Result<(), Failure> {
        if self.images.contains_key(&name.image) {
            return Err(Refused::BadRecord("an image has this id").into());
        }
        let state = img_lease::ImageState {
            image: name.image,
            head: None,
            epoch: Epoch(0),
            lease: None,
            staged: Vec::new(),
            tombstone_ms: None,
        };
        let row = ImageRow {
            tag: name.tag,
            state,
        };
        self.images.insert(name.image, row);
        let (subject, by) = (*name.tag.as_bytes(), caller.device);
        self.log_line(LogKind::Descriptor, name.image, subject, by, Epoch(0));
        Ok(())
    }

    fn granted(&mut self, caller: &Caller, grant: &Grant) -> Answer {
        self.apply(&grant.effect, caller.device);
        Answer::Granted {
            token: grant.token,
            ttl_ms: grant.ttl_ms,
            head: grant.effect.image.head,
            current: true,
        }
    }

    fn done(&mut self, caller: &Caller, effect: Option<Effect>) -> Result<Answer, Failure> {
        if let Some(effect) = effect {
            self.apply(&effect, caller.device);
        }
        Ok(Answer::Done)
    }

    fn acknowledge(&mut self, caller: &Caller, effect: &Effect, proposal: &Proposal) -> Receipt {
        self.apply(effect, caller.device);
        let receipt = self.receipt(proposal);
        let row = CommitRow {
            proposal: *proposal,
            receipt,
        };
        self.commits.insert(proposal.commit, row);
        receipt
    }

    fn receipt(&self, proposal: &Proposal) -> Receipt {
        Receipt {
            at: self.standing(),
            image: proposal.image,
            seq: proposal.seq,
            commit: proposal.commit,
        }
    }
}
