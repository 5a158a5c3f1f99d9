//! A device: a machine with a disk and clocks, and the daemon on it.
//!
//! The lease of each checkout is an [`img_lease::holder::Holder`]; around it stands a small shell that does
//! what `imgd` does, in the order of durable writes that the lease rules ask for: a call is journaled before
//! it is first sent, a signed commit is written down before it is sent, base and record change before the
//! outbox is trimmed.
//!
//! ```text
//!  wish ─▶ seal ─▶ bring what the home lacks ─▶ (late: take the lease) ─▶ sign, write down ─▶ send ─▶ receipt
//!            ▲             ▲                                                  │
//!            │             └────────────── incomplete ────────────────────────┤
//!            └── restart: a record that was written down goes on here         └─▶ superseded: orphan
//! ```

mod acts;
mod hear;
mod settle;
mod work;

use img_lease::holder::{Event as LeaseEvent, Forbidden, Holder, Moment};
use img_testkit::home::{Call, Naming, Standing};
use img_types::{CheckoutId, DeviceId, ImageId, NameTag, RequestId};

use crate::checks::Truth;
use crate::clock::{Clocks, HOUR, MINUTE, Millis, SECOND};
use crate::content::Library;
use crate::disk::{Crash, Disk};
use crate::ids::{Names, short};
use crate::luck::Luck;
use crate::net::{Event, Net};
use crate::process::{Desk, Job, Link, Outstanding, Process, Why};
use crate::stored::{Journaled, Row, Stage, Stored};
use crate::trace::Trace;
use crate::wire::{Ask, Request};

pub use acts::Opening;

/// A fault of a device's shell, to show that the checks would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A call is sent before it is in the journal.
    RequestNotJournaled,
    /// A signed commit is not written down; after a restart another is signed.
    CommitSignedAgain,
    /// The outbox is trimmed when the home has the objects, not when it has signed for the commit.
    OutboxTrimmedEarly,
    /// A deadline counts from the reply, not from when the call was sent.
    DeadlineFromReply,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::RequestNotJournaled,
        Self::CommitSignedAgain,
        Self::OutboxTrimmedEarly,
        Self::DeadlineFromReply,
    ];
}

/// What everything that happens may use.
pub struct Ctx<'a> {
    /// True time.
    pub now: Millis,
    /// Luck.
    pub luck: &'a mut Luck,
    /// The lines.
    pub trace: &'a mut Trace,
    /// The network.
    pub net: &'a mut Net,
    /// What roots stand for.
    pub library: &'a mut Library,
    /// New names.
    pub names: &'a mut Names,
    /// What the checks know.
    pub truth: &'a mut Truth,
}

/// A machine.
#[derive(Debug)]
pub struct Device {
    /// Which.
    pub number: usize,
    /// Whose keys it has; a clone has those of another machine.
    pub id: DeviceId,
    /// For traces.
    pub label: String,
    /// Its disk.
    pub disk: Disk<Stored>,
    /// Its clocks.
    pub clocks: Clocks,
    /// Whether it sleeps: nothing runs and nothing is heard.
    pub asleep: bool,
    /// Whether it was put away for ever.
    pub gone: bool,
    /// Its daemon, while it runs.
    pub process: Option<Process>,
    /// What is wrong with its shell.
    pub fault: Option<Fault>,
    /// The timer that counts.
    pub timer: u64,
}

/// How something a device does ends.
pub type Step<T = ()> = Result<T, Crash>;

impl Device {
    /// A machine that is off.
    pub fn new(number: usize, id: DeviceId, clocks: Clocks, stored: Stored) -> Self {
        Self {
            number,
            id,
            label: format!("device{number}"),
            disk: Disk::new(stored),
            clocks,
            asleep: false,
            gone: false,
            process: None,
            fault: None,
            timer: 0,
        }
    }

    /// Whether its daemon runs and hears.
    pub fn is_awake(&self) -> bool {
        self.process.is_some() && !self.asleep && !self.gone
    }

    /// What its clocks say.
    pub fn moment(&self, ctx: &Ctx<'_>) -> Moment {
        self.clocks.moment(ctx.now)
    }

    /// Whether something of a checkout is in no commit of it.
    pub fn has_unsaved(&self, checkout: CheckoutId) -> bool {
        self.is_unsaved(checkout)
    }

    /// Whether nothing is left to be done here.
    pub fn is_quiet(&self) -> bool {
        let disk = self.disk.read();
        let told = self.process.as_ref().is_some_and(|process| !process.behind);
        self.gone || (told && disk.checkouts.is_empty() && disk.journal.is_empty())
    }

    /// Starts the daemon, which recovers what it finds.
    pub fn start(&mut self, ctx: &mut Ctx<'_>) {
        self.asleep = false;
        if self.gone || self.process.is_some() {
            return;
        }
        let nonce = img_types::DaemonNonce::from_bytes(ctx.names.make());
        let number = ctx.truth.next_process();
        ctx.trace
            .line(ctx.now, &self.label, || format!("starts as {number}"));
        self.process = Some(Process::new(number, nonce, ctx.now));
        if self.recover(ctx).is_err() {
            self.crash(ctx);
        } else {
            self.wake(ctx);
        }
    }

    /// The daemon dies; what was not synced may be gone.
    pub fn crash(&mut self, ctx: &mut Ctx<'_>) {
        let Some(process) = self.process.take() else {
            return;
        };
        ctx.trace.line(ctx.now, &self.label, || "dies".to_owned());
        let rows = &mut self.disk.repair().checkouts;
        for (checkout, desk) in process.desks {
            let Some(row) = rows.get_mut(&checkout) else {
                continue;
            };
            let (synced, live) = (row.content.writes(), desk.live.writes());
            if live.len() > synced.len() && live.starts_with(synced) {
                let more = ctx.luck.below((live.len() - synced.len()) as u64 + 1);
                let kept = synced.len() + usize::try_from(more).unwrap_or(0);
                row.content = desk.live.first(kept);
            }
            if self.fault == Some(Fault::CommitSignedAgain) {
                row.pending = None;
            }
        }
        self.timer += 1;
    }

    /// Everything that is due now; afterwards the timer stands for what comes next.
    pub fn wake(&mut self, ctx: &mut Ctx<'_>) {
        if !self.is_awake() {
            return;
        }
        if self.run(ctx).is_err() {
            self.crash(ctx);
            let back = ctx.now + ctx.luck.between(SECOND, 10 * MINUTE);
            ctx.net.at(back, Event::DeviceUp(self.number));
            return;
        }
        self.set_timer(ctx);
    }

    /// Does something at the device, and what follows from it.
    pub fn act(&mut self, ctx: &mut Ctx<'_>, act: impl FnOnce(&mut Self, &mut Ctx<'_>) -> Step) {
        if !self.is_awake() {
            return;
        }
        if act(self, ctx).is_err() {
            self.crash(ctx);
            let back = ctx.now + ctx.luck.between(SECOND, 10 * MINUTE);
            ctx.net.at(back, Event::DeviceUp(self.number));
            return;
        }
        self.wake(ctx);
    }

    /// Checkouts that never got their grant go; the journal answers for it.
    fn recover(&mut self, ctx: &mut Ctx<'_>) -> Step {
        self.disk.write(ctx.luck, |disk| {
            disk.checkouts.retain(|_, row| row.stage != Stage::Opening);
        })?;
        let Some(process) = self.process.as_mut() else {
            return Ok(());
        };
        for (checkout, row) in &self.disk.read().checkouts {
            let live = row.content.clone();
            process.desks.insert(
                *checkout,
                Desk {
                    live,
                    ..Desk::default()
                },
            );
        }
        let journal = self.disk.read().journal.clone();
        for (request, journaled) in journal {
            let call = journaled.call;
            self.journaled(request, call, journaled.sent, Job::Nobody);
        }
        Ok(())
    }

    fn run(&mut self, ctx: &mut Ctx<'_>) -> Step {
        self.pass_time(ctx)?;
        self.keep_link(ctx);
        if self
            .process
            .as_ref()
            .is_some_and(|it| it.connection().is_some())
        {
            self.renew(ctx)?;
        }
        let checkouts: Vec<_> = self.disk.read().checkouts.keys().copied().collect();
        for checkout in checkouts {
            self.advance(ctx, checkout)?;
        }
        self.send_due(ctx);
        Ok(())
    }

    fn pass_time(&mut self, ctx: &mut Ctx<'_>) -> Step {
        let now = self.moment(ctx);
        let checkouts: Vec<_> = self.disk.read().checkouts.keys().copied().collect();
        for checkout in checkouts {
            // A tick fits every state.
            let _ = self.lease(ctx, checkout, LeaseEvent::Tick(now))?;
        }
        Ok(())
    }

    /// Lets an event happen to a checkout's lease; durable before anything follows from it.
    fn lease(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        event: LeaseEvent,
    ) -> Step<Result<bool, Forbidden>> {
        let row = self.disk.read().checkouts.get(&checkout);
        let Some(mut holder) = row.and_then(|row| row.holder.clone()) else {
            return Ok(Ok(false));
        };
        let before = holder.kind();
        let changed = match holder.apply(event) {
            Ok(changed) => changed,
            Err(why) => return Ok(Err(why)),
        };
        if changed {
            let after = holder.kind();
            if before != after {
                ctx.trace.line(ctx.now, &self.label, || {
                    format!("c{} {before:?} to {after:?}", short(checkout.as_bytes()))
                });
            }
            self.set_holder(ctx, checkout, holder)?;
        } else if let Some(row) = self.disk.repair().checkouts.get_mut(&checkout) {
            // In memory only: the newest wall time seen.
            row.holder = Some(holder);
        }
        Ok(Ok(changed))
    }

    fn set_holder(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId, holder: Holder) -> Step {
        self.row(ctx, checkout, |row| row.holder = Some(holder))
    }

    /// One transaction on a checkout's row.
    fn row(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        change: impl FnOnce(&mut Row),
    ) -> Step {
        self.disk.write(ctx.luck, |disk| {
            if let Some(row) = disk.checkouts.get_mut(&checkout) {
                change(row);
            }
        })
    }

    fn desk(&mut self, checkout: CheckoutId) -> Option<&mut Desk> {
        self.process.as_mut()?.desks.get_mut(&checkout)
    }

    /// Renews what is due.
    fn renew(&mut self, ctx: &mut Ctx<'_>) -> Step {
        let now = self.moment(ctx);
        let Some(process) = self.process.as_mut().filter(|process| !process.fenced) else {
            return Ok(());
        };
        let new_contact = !std::mem::replace(&mut process.greeted, true);
        let checkouts: Vec<_> = self.disk.read().checkouts.keys().copied().collect();
        for checkout in checkouts {
            let Some(process) = self.process.as_ref() else {
                break;
            };
            let under_way = process
                .calls
                .values()
                .any(|call| matches!(&call.why, Why::Renew(of, _) if *of == checkout));
            let row = self.disk.read().checkouts.get(&checkout);
            let Some(holder) = row.and_then(|row| row.holder.as_ref()) else {
                continue;
            };
            if under_way || !holder.renewal_due(&now, new_contact) {
                continue;
            }
            let mut holder = holder.clone();
            let request = RequestId::from_bytes(ctx.names.make());
            let Some(renewal) = holder.ask_renewal(request, None, now) else {
                continue;
            };
            let image = holder.image();
            self.set_holder(ctx, checkout, holder)?;
            let call = Call::Renew {
                image,
                checkout,
                token: renewal.token,
                terms: renewal.terms,
            };
            let ask = Ask::Mutate(renewal.request, Box::new(call));
            self.ask(ask, Why::Renew(checkout, renewal), renewal.sent);
        }
        Ok(())
    }

    /// Writes a call down and sends it.
    fn mutate(&mut self, ctx: &mut Ctx<'_>, call: Call, job: Job) -> Step<RequestId> {
        let request = RequestId::from_bytes(ctx.names.make());
        let sent = self.moment(ctx);
        if self.fault == Some(Fault::RequestNotJournaled) {
            // Sent, and then written down: a crash between the two loses it here.
            self.journaled(request, call.clone(), sent, job);
            self.send_due(ctx);
        }
        let journaled = Journaled {
            call: call.clone(),
            sent,
        };
        self.disk.write(ctx.luck, |disk| {
            disk.journal.insert(request, journaled);
        })?;
        if self.fault != Some(Fault::RequestNotJournaled) {
            self.journaled(request, call, sent, job);
        }
        Ok(request)
    }

    fn journaled(&mut self, request: RequestId, call: Call, sent: Moment, job: Job) {
        let ask = Ask::Mutate(request, Box::new(call));
        self.ask(ask, Why::Journal(request, job), sent);
    }

    /// Puts a call among those that are sent until they are answered.
    fn ask(&mut self, ask: Ask, why: Why, first: Moment) {
        let Some(process) = self.process.as_mut() else {
            return;
        };
        process.next_call += 1;
        process.calls.insert(
            process.next_call,
            Outstanding {
                ask,
                why,
                first,
                last: (0, 0),
            },
        );
    }

    /// Greets the home where there is no connection, and gives one up that is silent.
    fn keep_link(&mut self, ctx: &mut Ctx<'_>) {
        let seen = self.disk.read().seen;
        let (from, now) = (self.number, ctx.now);
        let Some(process) = self.process.as_mut() else {
            return;
        };
        match process.link {
            Link::Greeting {
                connection,
                since,
                pause,
            } if now >= since + SILENCE => {
                let _ = connection;
                process.link = Link::Down {
                    at: now + pause,
                    pause: (pause * 2).min(2 * HOUR),
                };
            }
            Link::Up { connection } => {
                let silent = process.calls.values();
                let silent = silent
                    .filter(|call| call.last.1 == connection)
                    .any(|call| now >= call.last.0 + SILENCE);
                if silent {
                    process.link = Link::Down {
                        at: now,
                        pause: SECOND,
                    };
                }
            }
            Link::Down { .. } | Link::Greeting { .. } => {}
        }
        if let Link::Down { at, pause } = process.link
            && now >= at
        {
            let connection = ctx.truth.next_connection();
            process.link = Link::Greeting {
                connection,
                since: now,
                pause,
            };
            let ask = match seen {
                Some(seen) if process.behind => Ask::Prove(seen),
                seen => Ask::Hello {
                    nonce: process.nonce,
                    seen,
                },
            };
            let request = Request {
                from,
                process: process.number,
                connection,
                number: 0,
                before: seen,
                ask,
            };
            ctx.net.to_home(now, ctx.luck, request);
        }
    }

    /// Sends what was not sent over this connection.
    fn send_due(&mut self, ctx: &mut Ctx<'_>) {
        let (from, now, seen) = (self.number, ctx.now, self.disk.read().seen);
        let Some(process) = self.process.as_mut() else {
            return;
        };
        let Some(connection) = process.connection() else {
            return;
        };
        for (number, call) in &mut process.calls {
            if call.last.1 == connection {
                continue;
            }
            call.last = (now, connection);
            let request = Request {
                from,
                process: process.number,
                connection,
                number: *number,
                before: seen,
                ask: call.ask.clone(),
            };
            ctx.trace
                .line(now, &self.label, || format!("asks {}", call.ask.word()));
            ctx.net.to_home(now, ctx.luck, request);
        }
    }

    fn set_timer(&mut self, ctx: &mut Ctx<'_>) {
        let now = self.moment(ctx);
        let Some(process) = &self.process else {
            return;
        };
        let link = match process.link {
            Link::Down { at, .. } => Some(at),
            Link::Greeting { since, .. } => Some(since + SILENCE),
            Link::Up { .. } => {
                let sent = process.calls.values().map(|call| call.last.0 + SILENCE);
                sent.min()
            }
        };
        let desks = process.desks.values().map(|desk| desk.rests_until);
        let rest = desks.filter(|until| *until > ctx.now).min();
        let holders = self.disk.read().checkouts.values();
        let holders = holders.filter_map(|row| row.holder.as_ref()?.wake_in_ms(&now));
        let lease = holders
            .min()
            .map(|local| ctx.now + self.clocks.until(local));
        let next = [link, rest, lease].into_iter().flatten().min();
        if let Some(next) = next {
            self.timer += 1;
            let event = Event::DeviceTimer(self.number, self.timer);
            ctx.net.at(next.max(ctx.now + 1), event);
        }
    }

    /// Compares a reply with what was seen when its call was sent, and remembers it.
    fn observe(&mut self, ctx: &mut Ctx<'_>, before: Option<Standing>, at: Standing) -> Step<bool> {
        // The rule of `imgd`: within one database the log only grows, and a position has one root for ever.
        let back = before.is_some_and(|before| {
            before.incarnation == at.incarnation
                && (at.position < before.position
                    || (at.position == before.position && at.root != before.root))
        });
        if back {
            self.went_back(ctx);
            return Ok(false);
        }
        let newer =
            self.disk.read().seen.is_none_or(|seen| {
                seen.incarnation != at.incarnation || seen.position < at.position
            });
        if newer {
            self.disk.write(ctx.luck, |disk| disk.seen = Some(at))?;
            ctx.truth.saw(self.number, at.position.0);
        }
        Ok(true)
    }

    /// The home is behind or unlike what was seen: a person hears of it, and nothing more is sent.
    fn went_back(&mut self, ctx: &mut Ctx<'_>) {
        let Some(process) = self.process.as_mut() else {
            return;
        };
        ctx.trace.line(ctx.now, &self.label, || {
            "notices that the home went back".to_owned()
        });
        process.behind = true;
        process.link = Link::Down {
            at: ctx.now,
            pause: SECOND,
        };
    }
}

/// The name tag of an image: nothing here renames.
fn naming(image: ImageId) -> Naming {
    Naming {
        image,
        tag: NameTag::from_bytes(*image.as_bytes()),
    }
}

/// After how long a connection without a sign is given up.
const SILENCE: Millis = 60 * SECOND;
