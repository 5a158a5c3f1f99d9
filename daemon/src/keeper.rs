//! Keeps the leases of this device's checkouts: one task that owns every [`Holder`].
//!
//! The task renews what is due while the home can be reached, keeps read-only checkouts' commits pinned, lets
//! time pass, and takes what others learn about a lease ([`Keeper::apply`]). Every change is durable before it
//! is seen and before anything is sent because of it. When and what to renew is the holder's business
//! (`img-lease`); how long the home may stay away is nobody's: a lease that lapsed is renewed when it is back.

mod clock;
mod retake;
#[cfg(test)]
mod tests;
mod theft;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use img_lease::Terms;
use img_lease::holder::{Event, Forbidden, Holder, Kind, Moment, Renewal, State as HolderState};
use img_proto::{Answer, Call, LeaseTerms, Refusal};
use img_types::{CheckoutId, CommitId, ImageId, RequestId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::enrol::device_name;
use crate::events::{self, Events};
use crate::home::{CallError, Home, Mutated};
use crate::state::{State, StateError};

use retake::Retake;

pub use clock::{Clock, luck};
pub use theft::why;

/// Why a lease did not take an event.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The event does not fit; a grant that is refused so has to be released at the home.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The checkout is not kept.
    #[error("there is no such checkout")]
    Unknown,
    /// It could not be made durable; nothing changed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The home did not do it.
    #[error(transparent)]
    Call(CallError),
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Ended,
}

/// A checkout as people know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Its image's name.
    pub name: String,
    /// Its folder, for people.
    pub dir: String,
}

/// Speaks with the task; clones speak with the same one, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Keeper {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<BTreeMap<CheckoutId, Holder>>,
    reasons: watch::Receiver<BTreeMap<CheckoutId, String>>,
}

/// A holder as the state folder keeps it.
pub fn encode(holder: &Holder) -> Vec<u8> {
    postcard::to_allocvec(holder).expect("a holder has no part that cannot be encoded")
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// The bytes are no holder.
pub fn decode(bytes: &[u8]) -> Result<Holder, StateError> {
    postcard::from_bytes(bytes).map_err(|_| StateError::Damaged("a checkout's lease"))
}

/// The word for a checkout's state in answers and events.
pub fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Leased => "leased",
        Kind::Lapsed => "lapsed",
        Kind::Orphan => "orphan",
        Kind::ReadOnly => "read-only",
        Kind::Closed => "closed",
    }
}

impl Keeper {
    /// Starts the task with the checkouts of before. Must be called within a tokio runtime.
    pub fn start(
        home: Arc<Home>,
        state: State,
        events: Events,
        kept: impl IntoIterator<Item = (Label, Holder)>,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let mut task = Task {
            home,
            state,
            events,
            clock: Clock::new(),
            kept: BTreeMap::new(),
            view: watch::Sender::default(),
            reasons: watch::Sender::default(),
            calls: JoinSet::new(),
        };
        for (label, holder) in kept {
            task.keep(label, holder);
        }
        let (view, reasons) = (task.view.subscribe(), task.reasons.subscribe());
        tokio::spawn(task.run(inbox));
        Self {
            commands,
            view,
            reasons,
        }
    }

    /// Takes over a checkout whose holder is durable already.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn keep(&self, label: Label, holder: Holder) -> Result<(), KeeperError> {
        self.ask(|done| Command::Keep {
            label,
            holder: Box::new(holder),
            done,
        })
        .await
    }

    /// Lets an event happen to a checkout's lease. Returns whether it changed anything; it is durable then.
    ///
    /// # Errors
    /// [`KeeperError`]; nothing changed.
    pub async fn apply(&self, checkout: CheckoutId, event: Event) -> Result<bool, KeeperError> {
        self.ask(|done| Command::Apply {
            checkout,
            event: Box::new(event),
            done,
        })
        .await?
    }

    /// Gives a checkout's lease other terms, from now on.
    ///
    /// # Errors
    /// The home is away or refuses, or there is no lease; it stays as it was.
    pub async fn renew(&self, checkout: CheckoutId, terms: Terms) -> Result<(), KeeperError> {
        self.ask(|done| Command::Renew {
            checkout,
            terms,
            done,
        })
        .await?
    }

    /// Stops keeping a checkout that has ended.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn forget(&self, checkout: CheckoutId) -> Result<(), KeeperError> {
        self.ask(|done| Command::Forget { checkout, done }).await
    }

    /// A checkout's lease as it stands.
    pub fn holder(&self, checkout: CheckoutId) -> Option<Holder> {
        self.view.borrow().get(&checkout).cloned()
    }

    /// What whoever took a checkout's image over said about it, once it is known.
    pub fn reason(&self, checkout: CheckoutId) -> Option<String> {
        let reason = self.reasons.borrow().get(&checkout).cloned();
        reason.filter(|reason| !reason.is_empty())
    }

    /// Waits a moment until it is known why somebody took a checkout's image over, if anybody did.
    pub async fn explained(&self, checkout: CheckoutId) {
        let holder = self.holder(checkout);
        let state = holder.as_ref().map(|holder| holder.state());
        if !matches!(state, Some(HolderState::Orphan { rival: Some(_) })) {
            return;
        }
        let mut reasons = self.reasons.clone();
        let known = reasons.wait_for(|reasons| reasons.contains_key(&checkout));
        // Who took it is told without it, too.
        let _ = tokio::time::timeout(EXPLAINED_MAX, known).await;
    }

    /// All leases, now and whenever one changes.
    pub fn watch(&self) -> watch::Receiver<BTreeMap<CheckoutId, Holder>> {
        self.view.clone()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, KeeperError> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(command(done)).await;
        sent.map_err(|_| KeeperError::Ended)?;
        answer.await.map_err(|_| KeeperError::Ended)
    }
}

/// What others ask of the task.
#[derive(Debug)]
enum Command {
    Keep {
        label: Label,
        holder: Box<Holder>,
        done: oneshot::Sender<()>,
    },
    Apply {
        checkout: CheckoutId,
        event: Box<Event>,
        done: oneshot::Sender<Result<bool, KeeperError>>,
    },
    Renew {
        checkout: CheckoutId,
        terms: Terms,
        done: oneshot::Sender<Result<(), KeeperError>>,
    },
    Forget {
        checkout: CheckoutId,
        done: oneshot::Sender<()>,
    },
}

/// How a call to the home ended.
enum Called {
    Renewed(CheckoutId, ImageId, Renewal, Result<Answer, CallError>),
    Pinned(CheckoutId, Result<(), CallError>),
    Retaken(Retake, Result<Mutated, CallError>),
    Explained(CheckoutId, Result<Option<String>, CallError>),
}

/// A checkout with what the task remembers about it.
struct Kept {
    label: Label,
    holder: Holder,
    /// Whether a call about it is under way.
    calling: bool,
    /// Not before then is the home bothered again.
    rests_until: Option<Instant>,
    /// Whether its lease has been renewed over the present connection, or need not be.
    greeted: bool,
    /// Whether the home has been asked why somebody took the image over.
    explained: bool,
    /// Other terms that somebody waits for.
    wanted: Option<(Terms, oneshot::Sender<Result<(), KeeperError>>)>,
}

impl Kept {
    fn answer(&mut self, outcome: Result<(), KeeperError>) {
        if let Some((_, done)) = self.wanted.take() {
            let _ = done.send(outcome);
        }
    }
}

struct Task {
    home: Arc<Home>,
    state: State,
    events: Events,
    clock: Clock,
    kept: BTreeMap<CheckoutId, Kept>,
    view: watch::Sender<BTreeMap<CheckoutId, Holder>>,
    /// Empty where nothing was said.
    reasons: watch::Sender<BTreeMap<CheckoutId, String>>,
    calls: JoinSet<Called>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut link = self.home.link().state();
        let mut connected = self.home.connected();
        loop {
            self.pass_time().await;
            if self.home.revocation().is_some() {
                self.end_leases().await;
            }
            if connected {
                self.call_home().await;
            }
            let rest = self.rest();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                Some(called) = self.calls.join_next() => {
                    // A call that panicked is made again like one without an answer.
                    if let Ok(called) = called {
                        self.hear(called).await;
                    }
                }
                Ok(()) = link.changed() => {
                    link.borrow_and_update();
                    let was = std::mem::replace(&mut connected, self.home.connected());
                    if connected && !was {
                        self.new_contact();
                    }
                }
                () = sleep(rest) => {}
            }
        }
    }

    fn keep(&mut self, label: Label, holder: Holder) {
        let checkout = holder.checkout();
        let kept = Kept {
            label,
            holder,
            calling: false,
            rests_until: None,
            greeted: false,
            explained: false,
            wanted: None,
        };
        self.kept.insert(checkout, kept);
        self.show();
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may have gone: then nobody hears the answer.
        match command {
            Command::Keep {
                label,
                holder,
                done,
            } => {
                self.keep(label, *holder);
                let _ = done.send(());
            }
            Command::Apply {
                checkout,
                event,
                done,
            } => {
                let _ = done.send(self.apply(checkout, *event).await);
            }
            Command::Renew {
                checkout,
                terms,
                done,
            } => match self.kept.get_mut(&checkout) {
                Some(_) if !self.home.connected() => {
                    let _ = done.send(Err(KeeperError::Call(CallError::Away)));
                }
                Some(kept) if kept.holder.token().is_some() => {
                    // Of two who ask at once the later one is heard.
                    kept.wanted = Some((terms, done));
                }
                Some(_) | None => {
                    let _ = done.send(Err(KeeperError::Unknown));
                }
            },
            Command::Forget { checkout, done } => {
                self.kept.remove(&checkout);
                self.forget_reason(checkout);
                self.show();
                let _ = done.send(());
            }
        }
    }

    /// Lets an event happen: to a copy, which takes the holder's place once it is durable.
    async fn apply(&mut self, checkout: CheckoutId, event: Event) -> Result<bool, KeeperError> {
        let kept = self.kept.get_mut(&checkout).ok_or(KeeperError::Unknown)?;
        let before = kept.holder.kind();
        let mut holder = kept.holder.clone();
        let changed = holder.apply(event)?;
        if changed {
            write_down(&self.state, &holder).await?;
        }
        kept.holder = holder;
        if changed {
            self.forget_reason(checkout);
            self.tell(checkout, before);
            self.show();
        }
        Ok(changed)
    }

    async fn pass_time(&mut self) {
        let now = self.clock.now();
        let checkouts: Vec<_> = self.kept.keys().copied().collect();
        for checkout in checkouts {
            if let Err(error) = self.apply(checkout, Event::Tick(now)).await {
                tracing::error!(checkout = %checkout.short(), %error, "a lapse could not be written down");
            }
        }
    }

    /// This device has been revoked: the home has ended its leases.
    async fn end_leases(&mut self) {
        let held = self.kept.values().filter_map(|kept| {
            let (holder, tenure) = (&kept.holder, kept.holder.tenure()?);
            let over = Event::TokenStale {
                image: holder.image(),
                token: tenure.token,
                rival: None,
            };
            Some((holder.checkout(), over))
        });
        let held: Vec<_> = held.collect();
        for (checkout, over) in held {
            if let Err(error) = self.apply(checkout, over).await {
                tracing::error!(checkout = %checkout.short(), %error, "the end of a lease could not be written down");
            }
        }
    }

    /// Starts every call that is due.
    async fn call_home(&mut self) {
        let now = self.clock.now();
        for (checkout, kept) in &mut self.kept {
            let resting = kept.rests_until.is_some_and(|until| until > Instant::now());
            let wanted = kept.wanted.as_ref().map(|(terms, _)| *terms);
            if kept.calling || (resting && wanted.is_none()) {
                continue;
            }
            let home = Arc::clone(&self.home);
            let checkout = *checkout;
            if kept.holder.kind() == Kind::ReadOnly {
                let Some(commit) = kept.holder.base() else {
                    continue;
                };
                kept.calling = true;
                self.calls.spawn(async move {
                    Called::Pinned(checkout, pin(&home, commit, checkout).await)
                });
            } else if kept.is_unexplained() {
                kept.calling = true;
                let image = kept.holder.image();
                self.calls
                    .spawn(async move { theft::ask(&home, image, checkout).await });
            } else if let Some(retake) = kept.retake(&home, now) {
                kept.calling = true;
                self.calls.spawn(retake.ask(home, kept.holder.clone()));
            } else if wanted.is_some() || kept.holder.renewal_due(&now, !kept.greeted) {
                let request = home.request_id();
                let asked = ask_renewal(&self.state, &mut kept.holder, request, wanted, now).await;
                let Some(renewal) = asked else {
                    kept.answer(Err(KeeperError::Unknown));
                    kept.rests_until = Some(Instant::now() + REST);
                    continue;
                };
                kept.calling = true;
                let image = kept.holder.image();
                self.calls.spawn(async move {
                    let call = Call::Renew {
                        image,
                        checkout,
                        token: renewal.token,
                        terms: renewal.terms.map(|terms| LeaseTerms {
                            ttl_ms: terms.ttl_ms,
                            mode: terms.mode,
                        }),
                    };
                    let outcome = home.repeat(renewal.request, call).await;
                    Called::Renewed(checkout, image, renewal, outcome)
                });
            }
        }
    }

    /// Takes the home's answer to a call.
    async fn hear(&mut self, called: Called) {
        let (checkout, outcome) = match called {
            Called::Renewed(checkout, image, renewal, outcome) => {
                let terms = renewal.terms;
                let outcome = self.renewed(checkout, image, renewal, outcome).await;
                self.tell_who_wanted(checkout, terms, &outcome);
                (checkout, outcome.map(|()| None))
            }
            Called::Retaken(retake, outcome) => {
                let outcome = self.retaken(retake, outcome).await;
                (retake.checkout(), outcome.map(|()| None))
            }
            Called::Explained(checkout, outcome) => {
                let outcome = outcome.map(|reason| self.explained(checkout, reason));
                (checkout, outcome.map(|()| None).map_err(Trouble::from))
            }
            Called::Pinned(checkout, outcome) => {
                let again = Instant::now() + PIN_INTERVAL;
                (
                    checkout,
                    outcome.map(|()| Some(again)).map_err(Trouble::from),
                )
            }
        };
        let Some(kept) = self.kept.get_mut(&checkout) else {
            return;
        };
        kept.calling = false;
        match outcome {
            Ok(rests_until) => {
                kept.greeted = true;
                kept.rests_until = rests_until;
            }
            Err(Trouble::Away) => kept.rests_until = Some(Instant::now() + PAUSE),
            Err(Trouble::Stuck(reason)) => {
                tracing::warn!(checkout = %checkout.short(), reason, "the lease is not renewed");
                kept.rests_until = Some(Instant::now() + REST);
            }
        }
    }

    async fn renewed(
        &mut self,
        checkout: CheckoutId,
        image: ImageId,
        renewal: Renewal,
        outcome: Result<Answer, CallError>,
    ) -> Result<(), Trouble> {
        let event = match outcome {
            Ok(Answer::Renewed { ttl_ms }) => Event::Renewed {
                request: renewal.request,
                ttl_ms,
                luck: luck(),
            },
            Ok(_) => return Err(Trouble::Stuck("the home's answer makes no sense".into())),
            // It ended with the home's database, and is taken anew next.
            Err(CallError::Refused(Refusal::TokenStale { .. }))
                if self.home.is_void(&renewal.token) =>
            {
                return Ok(());
            }
            Err(CallError::Refused(Refusal::TokenStale { holder, .. })) => Event::TokenStale {
                image,
                token: renewal.token,
                rival: holder,
            },
            // A deleted image has no lease any more; what is here can be branched.
            Err(CallError::Refused(Refusal::UnknownImage)) => Event::TokenStale {
                image,
                token: renewal.token,
                rival: None,
            },
            Err(error) => return Err(error.into()),
        };
        match self.apply(checkout, event).await {
            Ok(_) | Err(KeeperError::Unknown) => Ok(()),
            Err(error) => Err(Trouble::Stuck(error.to_string())),
        }
    }

    /// Answers whoever wanted other terms, unless the renewal was one of before: then theirs comes next.
    fn tell_who_wanted(
        &mut self,
        checkout: CheckoutId,
        terms: Option<Terms>,
        outcome: &Result<(), Trouble>,
    ) {
        let Some(kept) = self.kept.get_mut(&checkout) else {
            return;
        };
        let wanted = kept.wanted.as_ref().map(|(terms, _)| *terms);
        match outcome {
            Err(Trouble::Away) => kept.answer(Err(KeeperError::Call(CallError::Away))),
            Err(Trouble::Stuck(_)) => kept.answer(Err(KeeperError::Call(CallError::Protocol(
                "the lease is not renewed",
            )))),
            Ok(()) if kept.holder.token().is_none() => kept.answer(Err(KeeperError::Unknown)),
            Ok(()) if terms == wanted => kept.answer(Ok(())),
            Ok(()) => {}
        }
    }

    /// The home is back: nobody rests any more, and offline leases and pins are renewed.
    fn new_contact(&mut self) {
        for kept in self.kept.values_mut() {
            kept.rests_until = None;
            kept.greeted = false;
        }
    }

    /// How long nothing is to be done unless something happens. The timer stands still while the machine
    /// sleeps and the leases do not, so it is never a long one.
    fn rest(&self) -> Duration {
        let now = self.clock.now();
        let wakes = self.kept.values().filter_map(|kept| {
            let by_time = kept.holder.wake_in_ms(&now).map(Duration::from_millis);
            let by_rest = kept
                .rests_until
                .and_then(|until| until.checked_duration_since(Instant::now()));
            match (by_time, by_rest) {
                (Some(time), Some(rest)) => Some(time.min(rest)),
                (time, rest) => time.or(rest),
            }
        });
        wakes.min().unwrap_or(REST_MAX).clamp(REST_MIN, REST_MAX)
    }

    fn tell(&self, checkout: CheckoutId, before: Kind) {
        let Some(kept) = self.kept.get(&checkout) else {
            return;
        };
        let until = kept.holder.tenure().map(|tenure| tenure.until());
        self.events.send(events::Event::Lease {
            image: kept.holder.image(),
            name: kept.label.name.clone(),
            until: until.map(events::time),
        });
        let kind = kept.holder.kind();
        if kind != before {
            tracing::info!(checkout = %checkout.short(), state = word(kind), "a checkout's lease has changed");
            self.events.send(events::Event::Checkout {
                checkout,
                name: kept.label.name.clone(),
                dir: kept.label.dir.clone(),
                state: word(kind),
                rival: rival(&self.home, &kept.holder),
                reason: None,
                left: None,
            });
        }
    }

    fn show(&self) {
        let holders = self.kept.iter();
        self.view.send_replace(
            holders
                .map(|(checkout, kept)| (*checkout, kept.holder.clone()))
                .collect(),
        );
    }
}

/// The name of the device that has taken a checkout's image over.
pub fn rival(home: &Home, holder: &Holder) -> Option<String> {
    let HolderState::Orphan { rival: Some(rival) } = holder.state() else {
        return None;
    };
    Some(device_name(
        &home.objects().keyring(),
        &home.roster(),
        rival,
    ))
}

/// Why a call to the home has to be made again.
enum Trouble {
    Away,
    Stuck(String),
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Away => Self::Away,
            error => Self::Stuck(error.to_string()),
        }
    }
}

async fn write_down(state: &State, holder: &Holder) -> Result<(), StateError> {
    let (checkout, bytes) = (holder.checkout(), encode(holder));
    state.with(move |db| db.set_holder(checkout, &bytes)).await
}

/// Begins a renewal, or repeats the one under way; durable before it is sent.
async fn ask_renewal(
    state: &State,
    kept: &mut Holder,
    request: RequestId,
    terms: Option<Terms>,
    now: Moment,
) -> Option<Renewal> {
    let mut holder = kept.clone();
    let renewal = holder.ask_renewal(request, terms, now)?;
    if let Err(error) = write_down(state, &holder).await {
        tracing::error!(%error, "a renewal could not be written down");
        return None;
    }
    *kept = holder;
    Some(renewal)
}

async fn pin(home: &Home, commit: CommitId, checkout: CheckoutId) -> Result<(), CallError> {
    let pinned = home.mutate(Call::Pin { commit, checkout }).await?;
    Ok(home.settle(pinned.request).await?)
}

/// Commands that may wait; whoever sends more waits.
const COMMANDS_MAX: usize = 64;
/// How long somebody waits to hear why an image was taken over.
const EXPLAINED_MAX: Duration = Duration::from_secs(2);
/// Pause after the connection broke in the middle of a call.
const PAUSE: Duration = Duration::from_secs(2);
/// Pause after a refusal that only a person or a newer daemon can change.
const REST: Duration = Duration::from_secs(300);
/// How often a pin is renewed over a connection that stands: a thirtieth of its time.
const PIN_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Shortest timer.
const REST_MIN: Duration = Duration::from_millis(10);
/// Longest timer: a machine that slept finds its leases' true age within this time.
const REST_MAX: Duration = Duration::from_secs(30);
