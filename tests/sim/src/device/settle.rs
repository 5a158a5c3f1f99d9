//! What becomes durable at a device when the home has decided.

use img_lease::holder::{Event as LeaseEvent, Granted, Holder, Moment};
use img_lease::{Proposal, Refused, Terms};
use img_testkit::home::{Answer, Call, Failure, Receipt};
use img_types::{CheckoutId, ImageId, RequestId, Token};

use super::{Ctx, Device, Fault, Step};
use crate::ids::short;
use crate::process::{Desk, Job, Task, Then, Why};
use crate::stored::Stage;
use crate::wire::{Ask, No, Told};

impl Device {
    /// A new checkout stands on the head of the transaction that granted it.
    pub(super) fn opened(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: RequestId,
        checkout: CheckoutId,
        answer: Answer,
        head: Option<(Proposal, Receipt)>,
        sent: Moment,
    ) -> Step {
        let Answer::Granted {
            token,
            ttl_ms,
            current: true,
            ..
        } = answer
        else {
            self.remove(ctx, checkout)?;
            return self.settled(ctx, request);
        };
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return self.settled(ctx, request);
        };
        let (image, mode) = (row.image, row.terms.mode);
        let base = head.map(|(proposal, _)| proposal);
        let content = base.map_or_else(Default::default, |base| ctx.library.open(base.root));
        let granted = Granted {
            token,
            terms: Terms { ttl_ms, mode },
            head: base.map(|base| base.commit),
            sent,
            luck: ctx.luck.word(),
        };
        let holder = Holder::leased(image, checkout, &granted);
        ctx.trace.line(ctx.now, &self.label, || {
            format!("c{} opens e{}", short(checkout.as_bytes()), token.epoch)
        });
        let live = content.clone();
        self.disk.write(ctx.luck, |disk| {
            disk.journal.remove(&request);
            disk.cached.extend(content.objects());
            disk.known.extend(head.map(|entry| (entry.0.commit, entry)));
            if let Some(row) = disk.checkouts.get_mut(&checkout) {
                row.stage = Stage::Open;
                row.base = base;
                row.content = content;
                row.holder = Some(holder);
            }
        })?;
        if let Some(process) = self.process.as_mut() {
            let desk = Desk {
                live,
                ..Desk::default()
            };
            process.desks.insert(checkout, desk);
        }
        let first = self.moment(ctx);
        self.ask(Ask::Log(image), Why::Look, first);
        Ok(())
    }

    /// The lease for a late commit: a grant that does not fit is given back.
    pub(super) fn granted_late(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: RequestId,
        checkout: CheckoutId,
        call: &Call,
        answer: Answer,
        sent: Moment,
    ) -> Step {
        let (
            Call::Acquire { image, want },
            Answer::Granted {
                token,
                ttl_ms,
                head,
                current: true,
            },
        ) = (call, answer)
        else {
            self.settled(ctx, request)?;
            return self.give_up(ctx, checkout);
        };
        let granted = Granted {
            token,
            terms: Terms {
                ttl_ms,
                mode: want.terms.mode,
            },
            head: head.map(|head| head.commit),
            sent,
            luck: ctx.luck.word(),
        };
        let row = self.disk.read().checkouts.get(&checkout);
        let taken = if row.is_some_and(|row| row.stage == Stage::Discarding) {
            // A checkout that is being closed takes nothing more.
            Ok(false)
        } else {
            self.lease(ctx, checkout, LeaseEvent::Granted(granted))?
        };
        if taken != Ok(true) {
            self.unless_held(ctx, *image, checkout, token)?;
            self.settled(ctx, request)?;
            return self.give_up(ctx, checkout);
        }
        self.settled(ctx, request)?;
        self.sign(ctx, checkout)
    }

    /// The lease of one late commit went back.
    pub(super) fn gave_back(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: RequestId,
        checkout: CheckoutId,
    ) -> Step {
        // An orphan by now has nothing to give back.
        let _ = self.lease(ctx, checkout, LeaseEvent::GivenBack)?;
        self.settled(ctx, request)?;
        if let Some(desk) = self.desk(checkout) {
            desk.task = None;
        }
        Ok(())
    }

    /// Nothing at home belongs to the checkout any more: what is here goes too.
    pub(super) fn ended(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: RequestId,
        checkout: CheckoutId,
    ) -> Step {
        self.row(ctx, checkout, |row| row.stage = Stage::Discarding)?;
        self.settled(ctx, request)?;
        self.remove(ctx, checkout)
    }

    pub(super) fn remove(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        ctx.trace.line(ctx.now, &self.label, || {
            format!("c{} is gone", short(checkout.as_bytes()))
        });
        self.disk.write(ctx.luck, |disk| {
            disk.checkouts.remove(&checkout);
        })?;
        if let Some(process) = self.process.as_mut() {
            process.desks.remove(&checkout);
        }
        Ok(())
    }

    fn settled(&mut self, ctx: &mut Ctx<'_>, request: RequestId) -> Step {
        self.disk.write(ctx.luck, |disk| {
            disk.journal.remove(&request);
        })
    }

    /// The home's word on a signed commit.
    pub(super) fn committed(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        told: Result<Told, No>,
    ) -> Step {
        let row = self.disk.read().checkouts.get(&checkout);
        let Some((pending, token)) = row.and_then(|row| {
            let pending = row.pending?;
            Some((pending, pending.proposal.token))
        }) else {
            return Ok(());
        };
        let proposal = pending.proposal;
        let event = match told {
            Ok(Told::Done(Answer::Committed { receipt }, _)) => {
                if receipt.commit != proposal.commit {
                    return Ok(());
                }
                return self.acknowledged(ctx, checkout, proposal, pending.generation, receipt);
            }
            Err(No::Incomplete(_)) => {
                let content = ctx.library.open(proposal.root);
                return self.upload(ctx, checkout, content, Then::Commit);
            }
            Err(No::Home(Failure::Refused(Refused::TokenStale { holder, .. }))) => {
                token.map(|token| LeaseEvent::TokenStale {
                    image: proposal.image,
                    token,
                    rival: holder,
                })
            }
            Err(No::Home(Failure::Refused(Refused::HeadMoved { head }))) => {
                ctx.truth.superseded_by(self.id, checkout, head);
                token.map(|token| LeaseEvent::HeadMoved {
                    image: proposal.image,
                    token,
                    head,
                })
            }
            // A deleted image: what is here can be branched.
            Err(No::Home(Failure::Refused(Refused::UnknownImage))) => {
                token.map(|token| LeaseEvent::TokenStale {
                    image: proposal.image,
                    token,
                    rival: None,
                })
            }
            _ => return self.put_off(ctx, checkout),
        };
        if let Some(event) = event {
            let _ = self.lease(ctx, checkout, event)?;
        }
        self.row(ctx, checkout, |row| row.pending = None)?;
        let first = self.moment(ctx);
        self.ask(Ask::Images, Why::Look, first);
        self.give_up(ctx, checkout)
    }

    /// Base and record change together, after the lease knows; the outbox is trimmed last.
    fn acknowledged(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        proposal: Proposal,
        generation: u64,
        receipt: Receipt,
    ) -> Step {
        let event = LeaseEvent::Committed {
            commit: proposal.commit,
            parent: proposal.parent,
        };
        let _ = self.lease(ctx, checkout, event)?;
        let content = ctx.library.open(proposal.root);
        ctx.truth.heard(proposal.commit);
        self.disk.write(ctx.luck, |disk| {
            disk.known.insert(proposal.commit, (proposal, receipt));
            if let Some(row) = disk.checkouts.get_mut(&checkout) {
                row.base = Some(proposal);
                row.pending = None;
                row.staged = None;
                row.checkpoints.retain(|cut, _| *cut > generation);
                row.keep_whole(&content);
            }
        })?;
        self.disk.write(ctx.luck, |disk| {
            disk.cached.extend(content.objects());
            if let Some(row) = disk.checkouts.get_mut(&checkout) {
                for object in content.objects() {
                    row.outbox.remove(&object);
                }
            }
        })?;
        ctx.trace.line(ctx.now, &self.label, || {
            format!(
                "c{} has committed {}",
                short(checkout.as_bytes()),
                short(proposal.commit.as_bytes())
            )
        });
        if let Some(desk) = self.desk(checkout) {
            desk.task = None;
        }
        let row = self.disk.read().checkouts.get(&checkout);
        if row.is_some_and(|row| row.checkpoints.is_empty()) {
            self.finish(checkout);
        }
        Ok(())
    }

    /// The home made a branch for a checkout that may have gone on or ended since.
    #[expect(clippy::too_many_arguments, reason = "an answer has these parts")]
    pub(super) fn branch_made(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: RequestId,
        call: &Call,
        token: Token,
        ttl_ms: u64,
        receipt: Receipt,
        sent: Moment,
    ) -> Step {
        let Call::Branch { first, terms, .. } = call else {
            return self.settled(ctx, request);
        };
        let (first, checkout) = (*first, first.checkout);
        let row = self.disk.read().checkouts.get(&checkout);
        if row.is_none_or(|row| row.stage == Stage::Discarding) {
            self.unless_held(ctx, first.image, checkout, token)?;
            return self.settled(ctx, request);
        }
        let granted = Granted {
            token,
            terms: Terms {
                ttl_ms,
                mode: terms.mode,
            },
            head: Some(first.commit),
            sent,
            luck: ctx.luck.word(),
        };
        self.branched(ctx, checkout, first, granted, Some((request, receipt)))?;
        self.finish(checkout);
        Ok(())
    }

    /// A checkout goes on as a branch's; the lease that it had is given back.
    pub(super) fn branched(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        first: Proposal,
        granted: Granted,
        answered: Option<(RequestId, Receipt)>,
    ) -> Step {
        let row = self.disk.read().checkouts.get(&checkout);
        let Some(mut holder) = row.and_then(|row| row.holder.clone()) else {
            return Ok(());
        };
        ctx.truth.heard(first.commit);
        let old = holder.token().map(|token| (holder.image(), token));
        let event = LeaseEvent::Branched {
            image: first.image,
            granted,
        };
        let taken = holder.apply(event) == Ok(true);
        if taken && let Some((image, token)) = old {
            self.release_aside(ctx, image, checkout, token)?;
        }
        let content = ctx.library.open(first.root);
        ctx.trace.line(ctx.now, &self.label, || {
            format!(
                "c{} goes on as i{}",
                short(checkout.as_bytes()),
                short(first.image.as_bytes())
            )
        });
        self.disk.write(ctx.luck, |disk| {
            if let Some((request, receipt)) = answered {
                disk.journal.remove(&request);
                disk.known.insert(first.commit, (first, receipt));
            }
            if !taken {
                return;
            }
            disk.cached.extend(content.objects());
            if let Some(row) = disk.checkouts.get_mut(&checkout) {
                row.image = first.image;
                row.base = Some(first);
                row.holder = Some(holder);
                row.staged = None;
                row.pending = None;
                let newest = row.checkpoints.iter().rev();
                let within = newest.clone().find(|(_, cut)| cut.root() == first.root);
                let within = within.map_or(0, |(generation, _)| *generation);
                row.checkpoints.retain(|cut, _| *cut > within);
                row.keep_whole(&content);
            }
        })
    }

    fn release_aside(
        &mut self,
        ctx: &mut Ctx<'_>,
        image: ImageId,
        checkout: CheckoutId,
        token: Token,
    ) -> Step {
        let call = Call::Release {
            image,
            checkout,
            token,
        };
        self.mutate(ctx, call, Job::Aside)?;
        Ok(())
    }

    /// A home that lost commits gets their objects, then the commits.
    pub(super) fn forwarded(
        &mut self,
        ctx: &mut Ctx<'_>,
        image: ImageId,
        commits: Vec<(Proposal, Receipt)>,
        told: Result<Told, No>,
    ) -> Step {
        let first = self.moment(ctx);
        match told {
            Ok(Told::Missing(absent)) if !absent.is_empty() => {
                let cached = &self.disk.read().cached;
                let here: Vec<_> = absent
                    .into_iter()
                    .filter(|id| cached.contains(id))
                    .collect();
                self.ask(Ask::Push(here), Why::Forward(image, commits), first);
            }
            Ok(Told::Missing(_) | Told::Durable) => {
                let call = Call::Readmit { image, commits };
                self.mutate(ctx, call, Job::Readmit)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Brings a content home before something else.
    pub(super) fn upload(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        content: crate::content::Content,
        then: Then,
    ) -> Step {
        let ids: Vec<_> = content.objects().collect();
        if let Some(desk) = self.desk(checkout) {
            desk.task = Some(Task::Uploading(content, then));
        }
        let first = self.moment(ctx);
        self.ask(Ask::Missing(ids), Why::Upload(checkout), first);
        Ok(())
    }

    /// Whether an object can be brought home from here.
    pub(super) fn has_object(&self, checkout: CheckoutId, id: &img_types::ObjectId) -> bool {
        let disk = self.disk.read();
        let row = disk.checkouts.get(&checkout);
        let in_outbox = row.is_some_and(|row| row.outbox.contains(id));
        in_outbox || (disk.cached.contains(id) && self.fault != Some(Fault::OutboxTrimmedEarly))
    }
}
