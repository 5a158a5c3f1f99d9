//! What a device makes of the home's replies.

use img_lease::Refused;
use img_lease::holder::{Event as LeaseEvent, Granted, Kind, Renewal};
use img_testkit::home::{Answer, Call, Failure};
use img_types::{CheckoutId, ImageId, RequestId};

use super::{Ctx, Device, Fault, Step};
use crate::checks::image_of;
use crate::clock::{MINUTE, SECOND};
use crate::process::{Job, Link, Outstanding, Task, Then, Why};
use crate::stored::Stage;
use crate::wire::{Ask, No, Reply, Told, View};

impl Device {
    /// Takes a reply, if it is for the daemon that runs.
    pub fn hear(&mut self, ctx: &mut Ctx<'_>, reply: Reply) {
        self.act(ctx, |device, ctx| device.take(ctx, reply));
    }

    fn take(&mut self, ctx: &mut Ctx<'_>, reply: Reply) -> Step {
        let Some(process) = self.process.as_mut() else {
            return Ok(());
        };
        if process.number != reply.process {
            return Ok(());
        }
        if reply.number == 0 {
            return self.greeted(ctx, reply);
        }
        if !process.calls.contains_key(&reply.number) || process.behind {
            return Ok(());
        }
        if let Err(No::HelloFirst) = reply.told {
            if process.connection() == Some(reply.connection) {
                process.link = Link::Down {
                    at: ctx.now,
                    pause: SECOND,
                };
            }
            return Ok(());
        }
        if let Some(at) = reply.at
            && !self.observe(ctx, reply.before, at)?
        {
            return Ok(());
        }
        let process = self.process.as_mut();
        let Some(call) = process.and_then(|process| process.calls.remove(&reply.number)) else {
            return Ok(());
        };
        if let Err(No::Home(Failure::Refused(Refused::InstanceFenced))) = reply.told
            && let Some(process) = self.process.as_mut()
        {
            process.fenced = true;
        }
        self.answered(ctx, call, reply.told)
    }

    /// The answer to Hello, or to a proof.
    fn greeted(&mut self, ctx: &mut Ctx<'_>, reply: Reply) -> Step {
        let Some(process) = self.process.as_mut() else {
            return Ok(());
        };
        let Link::Greeting { connection, .. } = process.link else {
            return Ok(());
        };
        if connection != reply.connection {
            return Ok(());
        }
        match reply.told {
            Ok(Told::Welcome(instance)) => {
                process.instance = instance;
                process.fenced = false;
            }
            Err(No::Home(Failure::Refused(Refused::InstanceFenced))) => process.fenced = true,
            Err(No::Home(Failure::WentBack { .. })) => {
                self.went_back(ctx);
                return Ok(());
            }
            // A proof that was heard: only a person goes on from here.
            _ => return Ok(()),
        }
        process.link = Link::Up { connection };
        process.greeted = false;
        let (number, fenced) = (process.number, process.fenced);
        ctx.trace.line(ctx.now, &self.label, || {
            format!(
                "{number} is welcome{}",
                if fenced { ", but fenced" } else { "" }
            )
        });
        if let Some(at) = reply.at
            && !self.observe(ctx, reply.before, at)?
        {
            return Ok(());
        }
        self.repeat_journal();
        let first = self.moment(ctx);
        self.ask(Ask::Images, Why::Look, first);
        Ok(())
    }

    /// Calls of the journal that nobody waits for are made again whenever the home is back.
    fn repeat_journal(&mut self) {
        let Some(process) = &self.process else {
            return;
        };
        let journal = self.disk.read().journal.iter();
        let forgotten = journal.filter(|(request, _)| {
            let mut calls = process.calls.values();
            !calls.any(|call| matches!(&call.why, Why::Journal(of, _) if of == *request))
        });
        let forgotten: Vec<_> = forgotten.map(|(id, call)| (*id, call.clone())).collect();
        for (request, journaled) in forgotten {
            self.journaled(request, journaled.call, journaled.sent, Job::Nobody);
        }
    }

    fn answered(&mut self, ctx: &mut Ctx<'_>, call: Outstanding, told: Result<Told, No>) -> Step {
        match (call.why, told) {
            (Why::Look, Ok(Told::Images(incarnation, views))) => {
                self.listed(ctx, incarnation, views, call.first)
            }
            (Why::Look, Ok(Told::Log(log))) => self.disk.write(ctx.luck, |disk| {
                let log = log.into_iter();
                disk.known.extend(log.map(|entry| (entry.0.commit, entry)));
            }),
            (Why::Look | Why::Prove, _) => Ok(()),
            (Why::Renew(checkout, renewal), told) => {
                // A checkout may go on as another image before this answer comes.
                let image = match call.ask {
                    Ask::Mutate(_, call) => image_of(&call),
                    _ => None,
                };
                let Some(image) = image else {
                    return Ok(());
                };
                self.renewed(ctx, checkout, image, renewal, told)
            }
            (Why::Upload(checkout), told) => self.uploaded(ctx, checkout, told),
            (Why::Commit(checkout), told) => self.committed(ctx, checkout, told),
            (Why::Forward(image, commits), told) => self.forwarded(ctx, image, commits, told),
            (Why::Journal(request, job), told) => {
                let Ask::Mutate(_, mutation) = call.ask else {
                    return Ok(());
                };
                self.journal_answered(ctx, request, job, &mutation, call.first, told)
            }
        }
    }

    /// The images as they are; a lease that came with a stolen image's branch is taken up here.
    fn listed(
        &mut self,
        ctx: &mut Ctx<'_>,
        incarnation: img_types::Incarnation,
        views: Vec<View>,
        asked: img_lease::holder::Moment,
    ) -> Step {
        let own = views
            .iter()
            .filter_map(|view| Some((view, *view.lease()?)))
            .filter(|(_, lease)| lease.device == self.id)
            .map(|(view, lease)| (view.clone(), lease));
        let own: Vec<_> = own.collect();
        if let Some(process) = self.process.as_mut() {
            process.images = views
                .into_iter()
                .map(|view| (view.state.image, view))
                .collect();
        }
        for (view, lease) in own {
            let image = view.state.image;
            let Some(row) = self.disk.read().checkouts.get(&lease.checkout) else {
                continue;
            };
            let (Some(holder), Some((first, _))) = (&row.holder, view.head) else {
                continue;
            };
            let is_other = row.image != image && row.stage != Stage::Discarding;
            if !is_other || row.pending.is_some() || holder.kind() != Kind::Orphan {
                continue;
            }
            let token = img_types::Token {
                incarnation,
                epoch: lease.epoch,
            };
            let granted = Granted {
                token,
                terms: img_lease::Terms {
                    ttl_ms: lease.remaining_ms,
                    mode: lease.mode,
                },
                head: Some(first.commit),
                sent: asked,
                luck: ctx.luck.word(),
            };
            self.branched(ctx, lease.checkout, first, granted, None)?;
        }
        Ok(())
    }

    fn renewed(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        image: ImageId,
        renewal: Renewal,
        told: Result<Told, No>,
    ) -> Step {
        let event = match told {
            Ok(Told::Done(Answer::Renewed { ttl_ms }, _)) => LeaseEvent::Renewed {
                request: renewal.request,
                ttl_ms,
                luck: ctx.luck.word(),
            },
            Err(No::Home(Failure::Refused(Refused::TokenStale { holder, .. }))) => {
                LeaseEvent::TokenStale {
                    image,
                    token: renewal.token,
                    rival: holder,
                }
            }
            Err(No::Home(Failure::Refused(Refused::UnknownImage))) => LeaseEvent::TokenStale {
                image,
                token: renewal.token,
                rival: None,
            },
            _ => return Ok(()),
        };
        if self.fault == Some(Fault::DeadlineFromReply) {
            self.move_renewal(ctx, checkout, renewal)?;
        }
        let superseded = matches!(event, LeaseEvent::TokenStale { .. });
        let changed = self.lease(ctx, checkout, event)?;
        if superseded && changed == Ok(true) {
            let first = self.moment(ctx);
            self.ask(Ask::Images, Why::Look, first);
        }
        Ok(())
    }

    /// The fault of a device that counts from the reply.
    fn move_renewal(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId, old: Renewal) -> Step {
        let row = self.disk.read().checkouts.get(&checkout);
        let Some(mut holder) = row.and_then(|row| row.holder.clone()) else {
            return Ok(());
        };
        let now = self.moment(ctx);
        // Ends the one under way with an answer, and begins it again as if it were sent now.
        let ended = LeaseEvent::Renewed {
            request: old.request,
            ttl_ms: 0,
            luck: 0,
        };
        if holder.apply(ended) == Ok(true) {
            holder.ask_renewal(old.request, old.terms, now);
            self.set_holder(ctx, checkout, holder)?;
        }
        Ok(())
    }

    fn uploaded(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        told: Result<Told, No>,
    ) -> Step {
        let task = self.desk(checkout).and_then(|desk| desk.task.clone());
        let Some(Task::Uploading(content, then)) = task else {
            return Ok(());
        };
        let absent = match told {
            Ok(Told::Missing(absent)) => absent,
            Ok(Told::Durable) => Vec::new(),
            _ => return self.put_off(ctx, checkout),
        };
        if absent.is_empty() {
            if self.fault == Some(Fault::OutboxTrimmedEarly) {
                self.row(ctx, checkout, |row| row.outbox.clear())?;
            }
            return self.after_upload(ctx, checkout, &content, then);
        }
        let here = absent.iter().copied();
        let here: Vec<_> = here.filter(|id| self.has_object(checkout, id)).collect();
        if here.len() < absent.len() {
            ctx.truth.lost_objects(&self.label, checkout, then);
            return self.give_up(ctx, checkout);
        }
        let first = self.moment(ctx);
        self.ask(Ask::Push(here), Why::Upload(checkout), first);
        Ok(())
    }

    fn journal_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: RequestId,
        job: Job,
        call: &Call,
        sent: img_lease::holder::Moment,
        told: Result<Told, No>,
    ) -> Step {
        let sent = if self.fault == Some(Fault::DeadlineFromReply) {
            self.moment(ctx)
        } else {
            sent
        };
        match told {
            Ok(Told::Done(answer, head)) => match (job, answer) {
                (Job::Open(checkout), Answer::Granted { .. }) => {
                    self.opened(ctx, request, checkout, answer, head.map(|head| *head), sent)
                }
                (Job::Late(checkout), Answer::Granted { .. }) => {
                    self.granted_late(ctx, request, checkout, call, answer, sent)
                }
                (
                    Job::Branch(_) | Job::Nobody,
                    Answer::Branched {
                        token,
                        ttl_ms,
                        receipt,
                    },
                ) => self.branch_made(ctx, request, call, token, ttl_ms, receipt, sent),
                (Job::GiveBack(checkout), _) => self.gave_back(ctx, request, checkout),
                (Job::Farewell(checkout), _) => self.ended(ctx, request, checkout),
                (Job::Stage(checkout), _) => {
                    self.strike(ctx, request)?;
                    self.finish(checkout);
                    Ok(())
                }
                (_, Answer::Granted { .. }) => self.unwanted(ctx, request, call, answer),
                _ => self.strike(ctx, request),
            },
            Err(why) => self.refused(ctx, request, job, why),
            Ok(_) => Ok(()),
        }
    }

    fn refused(&mut self, ctx: &mut Ctx<'_>, request: RequestId, job: Job, why: No) -> Step {
        ctx.trace
            .line(ctx.now, &self.label, || format!("refused: {why:?}"));
        if matches!(why, No::Home(Failure::Refused(Refused::InstanceFenced))) {
            // It stays in the journal: a restart of this machine may send it as the newest.
            if let Job::Late(checkout) | Job::Stage(checkout) | Job::Branch(checkout) = job {
                return self.give_up(ctx, checkout);
            }
            if let Job::Open(checkout) = job {
                return self.remove(ctx, checkout);
            }
            return Ok(());
        }
        self.strike(ctx, request)?;
        match job {
            Job::Open(checkout) => self.remove(ctx, checkout),
            Job::Late(checkout) => self.give_up(ctx, checkout),
            Job::Branch(checkout) | Job::Stage(checkout) => match why {
                No::Incomplete(_) => self.put_off(ctx, checkout),
                _ => self.give_up(ctx, checkout),
            },
            Job::GiveBack(checkout) | Job::Farewell(checkout) => self.put_off(ctx, checkout),
            Job::Nobody | Job::Aside | Job::Readmit => Ok(()),
        }
    }

    /// Nothing more of what is under way; the wish stays and is tried again later.
    pub(super) fn put_off(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let now = ctx.now;
        if let Some(desk) = self.desk(checkout) {
            desk.task = None;
            desk.rests_until = now + MINUTE;
        }
        Ok(())
    }

    /// The wish is answered with an error: a person has to choose another way.
    pub(super) fn give_up(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        if let Some(desk) = self.desk(checkout) {
            desk.task = None;
            desk.wish = None;
        }
        let row = self.disk.read().checkouts.get(&checkout);
        if row.is_some_and(|row| row.stage == Stage::Releasing) {
            self.row(ctx, checkout, |row| row.stage = Stage::Open)?;
        }
        Ok(())
    }

    /// The wish came true.
    pub(super) fn finish(&mut self, checkout: CheckoutId) {
        if let Some(desk) = self.desk(checkout) {
            desk.task = None;
            desk.wish = None;
        }
    }

    fn strike(&mut self, ctx: &mut Ctx<'_>, request: RequestId) -> Step {
        self.disk.write(ctx.luck, |disk| {
            disk.journal.remove(&request);
        })
    }

    /// A grant that nobody waits for any more is given back, unless the checkout has it.
    fn unwanted(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: RequestId,
        call: &Call,
        answer: Answer,
    ) -> Step {
        let granted = match call {
            Call::Acquire { image, want } => Some((*image, want.checkout)),
            Call::Steal {
                image, checkout, ..
            } => Some((*image, *checkout)),
            Call::CreateImage { name, checkout, .. } => Some((name.image, *checkout)),
            _ => None,
        };
        if let (
            Some((image, checkout)),
            Answer::Granted {
                token,
                current: true,
                ..
            },
        ) = (granted, answer)
        {
            self.unless_held(ctx, image, checkout, token)?;
        }
        self.strike(ctx, request)
    }

    pub(super) fn unless_held(
        &mut self,
        ctx: &mut Ctx<'_>,
        image: ImageId,
        checkout: CheckoutId,
        token: img_types::Token,
    ) -> Step {
        let row = self.disk.read().checkouts.get(&checkout);
        let held = row
            .and_then(|row| row.holder.as_ref())
            .is_some_and(|holder| holder.token() == Some(token) && holder.image() == image);
        if !held {
            let call = Call::Release {
                image,
                checkout,
                token,
            };
            self.mutate(ctx, call, Job::Aside)?;
        }
        Ok(())
    }

    fn after_upload(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        content: &crate::content::Content,
        then: Then,
    ) -> Step {
        match then {
            Then::Commit => self.send_commit(ctx, checkout),
            Then::Sign => self.sign(ctx, checkout),
            Then::Acquire => self.acquire_late(ctx, checkout),
            Then::Branch => self.send_branch(ctx, checkout, content),
            Then::Stage => self.send_stage(ctx, checkout, content),
        }
    }
}
