//! The device's side: what one checkout knows about its lease.
//!
//! ```text
//!              granted (new checkout)
//!                     │
//!                     ▼    deadline passed
//!     ┌──────────▶ LEASED ────────────────▶ LAPSED
//!     │             │  ▲ ◀───────────────── │   │
//!     │             │  │  renewed, granted  │   │
//!     │  superseded │  │                    │   │ superseded
//!     │             │  │ granted (adopted)  │   │
//!     │             ▼  │                    │   │
//!     │            ORPHAN ◀─────────────────┼───┘
//!     │ granted                             │
//!  READ-ONLY ◀──────── given back ──────────┘          any of them → CLOSED
//! ```
//!
//! LAPSED keeps its token, and a renewal or a commit may still succeed under it: the home decides.
//! ORPHAN means that the home said the token is not current, or that it is but the base is not the
//! head. READ-ONLY has no token. A lease is granted to an existing checkout only while the head is
//! its base; [`TRANSITIONS`] is the whole table.
//!
//! Messages may arrive twice, late, or about a token of before: such a one changes nothing. At most
//! one renewal is under way, under one request id and from the moment it was first sent, so that the
//! device's deadline is never later than the home's. The shell persists the [`Holder`] whenever
//! [`Holder::apply`] says that it changed, and before it sends what [`Holder::ask_renewal`] returns.

mod term;
#[cfg(test)]
mod tests;

use img_types::{CheckoutId, CommitId, DeviceId, ImageId, LeaseMode, RequestId, Token, WallMillis};
use serde::{Deserialize, Serialize};

use crate::Terms;
pub use term::{BootId, Moment, Term};

/// What one checkout knows about its lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    image: ImageId,
    checkout: CheckoutId,
    base: Option<CommitId>,
    /// The newest grant of the image that was taken; an older one is a repetition.
    newest: Option<Token>,
    state: State,
}

/// Where a checkout stands with its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Holds the lease.
    Leased(Tenure),
    /// The deadline has passed; the token may still be current.
    Lapsed(Tenure),
    /// Somebody else was granted the image, or its head has moved on.
    Orphan {
        /// Who, as far as the home said.
        rival: Option<DeviceId>,
    },
    /// Has no token.
    ReadOnly,
    /// Is over.
    Closed,
}

/// A token and how long it may be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tenure {
    /// The fencing token.
    pub token: Token,
    /// What was granted last.
    pub terms: Terms,
    /// Until when.
    pub term: Term,
    /// The renewal that is under way.
    pub renewal: Option<Renewal>,
    /// What the checkout was before a grant for one late commit.
    pub before: Option<Before>,
}

/// A renewal that was sent and is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Renewal {
    /// Under which request id it is repeated.
    pub request: RequestId,
    /// The token to renew.
    pub token: Token,
    /// New terms, or as before.
    pub terms: Option<Terms>,
    /// When it was first sent.
    pub sent: Moment,
}

/// The state to which a checkout returns when it gives back a lease taken for a late commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Before {
    /// It was an orphan.
    Orphan,
    /// It was read-only.
    ReadOnly,
}

/// A grant as the home answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The token.
    pub token: Token,
    /// What was granted.
    pub terms: Terms,
    /// The head of the same transaction.
    pub head: Option<CommitId>,
    /// When the call was first sent.
    pub sent: Moment,
    /// Spreads the next renewal.
    pub luck: u16,
}

/// What can happen to a checkout's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The home granted the image to this checkout.
    Granted(Granted),
    /// The home answered a renewal.
    Renewed {
        /// Which.
        request: RequestId,
        /// Milliseconds granted.
        ttl_ms: u64,
        /// Spreads the next renewal.
        luck: u16,
    },
    /// Time passed.
    Tick(Moment),
    /// The home said that a token is not current.
    TokenStale {
        /// Of which image; tokens of two images may be equal.
        image: ImageId,
        /// Which token.
        token: Token,
        /// Who has the lease now, if somebody has.
        rival: Option<DeviceId>,
    },
    /// The home said that the head is another commit than the base, under a token.
    HeadMoved {
        /// Of which image.
        image: ImageId,
        /// Which token.
        token: Token,
        /// The head.
        head: Option<CommitId>,
    },
    /// A commit of this checkout is in history.
    Committed {
        /// Which.
        commit: CommitId,
        /// The base that it was made on.
        parent: Option<CommitId>,
    },
    /// The checkout goes on as a new image, which was granted to it with its first commit.
    Branched {
        /// The new image.
        image: ImageId,
        /// Its grant; the head is its first commit.
        granted: Granted,
    },
    /// The home took back a lease that was taken for one late commit.
    GivenBack,
    /// The checkout ends.
    Closed,
}

/// A state without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`State::Leased`].
    Leased,
    /// [`State::Lapsed`].
    Lapsed,
    /// [`State::Orphan`].
    Orphan,
    /// [`State::ReadOnly`].
    ReadOnly,
    /// [`State::Closed`].
    Closed,
}

/// What moves a checkout from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// A grant while the head is the base.
    Granted,
    /// A renewal was answered.
    Renewed,
    /// The deadline passed.
    DeadlinePassed,
    /// The token is not current, or the head is not the base.
    Superseded,
    /// A commit is in history.
    Committed,
    /// The checkout goes on as a new image.
    Branched,
    /// A read-only checkout's lease for a late commit went back.
    GivenBack,
    /// An orphan's lease for a late commit went back.
    AdoptionEnded,
    /// The checkout ends.
    Closed,
}

/// Every transition; what is not here is [`Forbidden`].
pub const TRANSITIONS: [(Kind, Cause, Kind); 23] = [
    (Kind::Leased, Cause::Renewed, Kind::Leased),
    (Kind::Leased, Cause::DeadlinePassed, Kind::Lapsed),
    (Kind::Leased, Cause::Superseded, Kind::Orphan),
    (Kind::Leased, Cause::Committed, Kind::Leased),
    (Kind::Leased, Cause::Branched, Kind::Leased),
    (Kind::Leased, Cause::GivenBack, Kind::ReadOnly),
    (Kind::Leased, Cause::AdoptionEnded, Kind::Orphan),
    (Kind::Leased, Cause::Closed, Kind::Closed),
    (Kind::Lapsed, Cause::Granted, Kind::Leased),
    (Kind::Lapsed, Cause::Renewed, Kind::Leased),
    (Kind::Lapsed, Cause::Superseded, Kind::Orphan),
    (Kind::Lapsed, Cause::Committed, Kind::Lapsed),
    (Kind::Lapsed, Cause::Branched, Kind::Leased),
    (Kind::Lapsed, Cause::GivenBack, Kind::ReadOnly),
    (Kind::Lapsed, Cause::AdoptionEnded, Kind::Orphan),
    (Kind::Lapsed, Cause::Closed, Kind::Closed),
    (Kind::Orphan, Cause::Granted, Kind::Leased),
    (Kind::Orphan, Cause::Committed, Kind::Orphan),
    (Kind::Orphan, Cause::Branched, Kind::Leased),
    (Kind::Orphan, Cause::Closed, Kind::Closed),
    (Kind::ReadOnly, Cause::Granted, Kind::Leased),
    (Kind::ReadOnly, Cause::Branched, Kind::Leased),
    (Kind::ReadOnly, Cause::Closed, Kind::Closed),
];

/// An event does not fit a checkout's state; nothing changed. A grant that is refused so is to be
/// released at the home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// The table has no such transition.
    #[error("a {from:?} checkout cannot take {cause:?}")]
    Transition {
        /// The state.
        from: Kind,
        /// What was to move it.
        cause: Cause,
    },
    /// The grant came with a head that is not the checkout's base.
    #[error("the head is not the checkout's base")]
    NotAtBase,
}

impl Holder {
    /// Begins a checkout that was granted its image's lease; it stands on the head of the grant.
    pub fn leased(image: ImageId, checkout: CheckoutId, granted: &Granted) -> Self {
        Self {
            image,
            checkout,
            base: granted.head,
            newest: Some(granted.token),
            state: State::Leased(Tenure::new(granted, None)),
        }
    }

    /// Begins a read-only checkout of a commit.
    pub fn read_only(image: ImageId, checkout: CheckoutId, base: Option<CommitId>) -> Self {
        Self {
            image,
            checkout,
            base,
            newest: None,
            state: State::ReadOnly,
        }
    }

    /// The image that the checkout belongs to.
    pub fn image(&self) -> ImageId {
        self.image
    }

    /// The checkout.
    pub fn checkout(&self) -> CheckoutId {
        self.checkout
    }

    /// The newest commit that the checkout stands on.
    pub fn base(&self) -> Option<CommitId> {
        self.base
    }

    /// The state with its data.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state without its data.
    pub fn kind(&self) -> Kind {
        match self.state {
            State::Leased(_) => Kind::Leased,
            State::Lapsed(_) => Kind::Lapsed,
            State::Orphan { .. } => Kind::Orphan,
            State::ReadOnly => Kind::ReadOnly,
            State::Closed => Kind::Closed,
        }
    }

    /// Token and deadline, while there is a token.
    pub fn tenure(&self) -> Option<&Tenure> {
        match &self.state {
            State::Leased(tenure) | State::Lapsed(tenure) => Some(tenure),
            State::Orphan { .. } | State::ReadOnly | State::Closed => None,
        }
    }

    /// The token to act under, while there is one.
    pub fn token(&self) -> Option<Token> {
        self.tenure().map(|tenure| tenure.token)
    }

    /// The newest grant of the image that was taken, also after it has ended.
    pub fn newest(&self) -> Option<Token> {
        self.newest
    }

    /// Whether a renewal should be sent now, given that the home can be reached.
    ///
    /// One that is under way is repeated until it is answered. `new_contact` says that the home has
    /// just been reached again: offline leases are renewed then, whatever their age.
    pub fn renewal_due(&self, now: &Moment, new_contact: bool) -> bool {
        match &self.state {
            State::Lapsed(_) => true,
            State::Leased(tenure) => {
                tenure.renewal.is_some()
                    || tenure.term.renewal_in_ms(now) == 0
                    || (new_contact && tenure.terms.mode == LeaseMode::Offline)
            }
            State::Orphan { .. } | State::ReadOnly | State::Closed => false,
        }
    }

    /// Milliseconds after which time alone will have something to do: a renewal, or the deadline.
    /// Nothing while neither lies ahead.
    pub fn wake_in_ms(&self, now: &Moment) -> Option<u64> {
        match &self.state {
            State::Leased(tenure) => {
                let deadline = tenure.term.remaining_ms(now);
                let renewal = tenure.term.renewal_in_ms(now);
                Some(if renewal == 0 {
                    deadline
                } else {
                    deadline.min(renewal)
                })
            }
            State::Lapsed(_) | State::Orphan { .. } | State::ReadOnly | State::Closed => None,
        }
    }

    /// Begins a renewal, or returns the one that is under way, which keeps its request id, its
    /// terms and its moment. Nothing without a token. To be persisted before it is sent.
    pub fn ask_renewal(
        &mut self,
        request: RequestId,
        terms: Option<Terms>,
        now: Moment,
    ) -> Option<Renewal> {
        let (State::Leased(tenure) | State::Lapsed(tenure)) = &mut self.state else {
            return None;
        };
        let token = tenure.token;
        Some(*tenure.renewal.get_or_insert(Renewal {
            request,
            token,
            terms,
            sent: now,
        }))
    }

    /// Lets one event happen. Returns whether anything changed that must be persisted: an event that
    /// is a repetition, or about a token or request of before, changes nothing.
    ///
    /// # Errors
    /// The event does not fit the state.
    pub fn apply(&mut self, event: Event) -> Result<bool, Forbidden> {
        let cause = self.cause(&event);
        if let (State::Leased(tenure), Event::Tick(now)) = (&mut self.state, &event) {
            tenure.term.observe(now);
        }
        let Some(cause) = cause else {
            return Ok(false);
        };
        let from = self.kind();
        let (_, _, to) = TRANSITIONS
            .into_iter()
            .find(|(state, by, _)| *state == from && *by == cause)
            .ok_or(Forbidden::Transition { from, cause })?;
        self.enter(to, event)?;
        Ok(true)
    }

    /// What an event means in the present state; nothing if it is stale.
    fn cause(&self, event: &Event) -> Option<Cause> {
        let holds =
            |image: &ImageId, token: &Token| self.image == *image && self.token() == Some(*token);
        let (fresh, cause) = match event {
            Event::Granted(granted) => (self.is_newer(&granted.token), Cause::Granted),
            Event::Renewed { request, .. } => {
                let renewal = self.tenure().and_then(|tenure| tenure.renewal);
                let asked = renewal.is_some_and(|renewal| renewal.request == *request);
                (asked, Cause::Renewed)
            }
            Event::Tick(now) => {
                let past = matches!(&self.state, State::Leased(tenure) if tenure.term.past(now));
                (past, Cause::DeadlinePassed)
            }
            Event::TokenStale { image, token, .. } => (holds(image, token), Cause::Superseded),
            Event::HeadMoved { image, token, head } => {
                let moved = holds(image, token) && *head != self.base;
                (moved, Cause::Superseded)
            }
            Event::Committed { parent, .. } => (self.base == *parent, Cause::Committed),
            Event::Branched { image, .. } => (self.image != *image, Cause::Branched),
            Event::GivenBack => match self.tenure().and_then(|tenure| tenure.before) {
                Some(Before::Orphan) => (true, Cause::AdoptionEnded),
                Some(Before::ReadOnly) | None => (true, Cause::GivenBack),
            },
            Event::Closed => (true, Cause::Closed),
        };
        fresh.then_some(cause)
    }

    /// Whether a token is newer than every grant that was taken; one of another database is.
    fn is_newer(&self, token: &Token) -> bool {
        self.newest.is_none_or(|newest| {
            newest.incarnation != token.incarnation || newest.epoch < token.epoch
        })
    }

    /// Carries out a transition that the table allows.
    fn enter(&mut self, to: Kind, event: Event) -> Result<(), Forbidden> {
        self.state = match (to, self.state, event) {
            (Kind::Leased, _, Event::Granted(granted)) if granted.head != self.base => {
                return Err(Forbidden::NotAtBase);
            }
            (Kind::Leased, state, Event::Granted(granted)) => {
                self.newest = Some(granted.token);
                let before = match state {
                    State::Orphan { .. } => Some(Before::Orphan),
                    State::ReadOnly => Some(Before::ReadOnly),
                    State::Lapsed(tenure) => tenure.before,
                    State::Leased(_) | State::Closed => None,
                };
                State::Leased(Tenure::new(&granted, before))
            }
            (Kind::Leased, _, Event::Branched { image, granted }) => {
                self.image = image;
                self.base = granted.head;
                self.newest = Some(granted.token);
                State::Leased(Tenure::new(&granted, None))
            }
            (
                Kind::Leased,
                State::Leased(tenure) | State::Lapsed(tenure),
                Event::Renewed { ttl_ms, luck, .. },
            ) => State::Leased(tenure.renewed(ttl_ms, luck)),
            (_, state, Event::Committed { commit, .. }) => {
                self.base = Some(commit);
                state
            }
            (Kind::Lapsed, State::Leased(tenure), _) => State::Lapsed(tenure),
            (Kind::Orphan, _, Event::TokenStale { rival, .. }) => State::Orphan { rival },
            (Kind::Orphan, _, _) => State::Orphan { rival: None },
            (Kind::ReadOnly, _, _) => State::ReadOnly,
            (Kind::Closed, _, _) => State::Closed,
            // The table leads here from no other state.
            (Kind::Leased | Kind::Lapsed, state, _) => state,
        };
        Ok(())
    }
}

impl Tenure {
    /// The home's deadline as the wall clock shows it, for people: what it granted, from when it was asked. The
    /// device's own, [`Term::past`], is a little earlier.
    pub fn until(&self) -> WallMillis {
        let ttl = i64::try_from(self.terms.ttl_ms).unwrap_or(i64::MAX);
        WallMillis(self.term.sent().wall.0.saturating_add(ttl))
    }

    fn new(granted: &Granted, before: Option<Before>) -> Self {
        Self {
            token: granted.token,
            terms: granted.terms,
            term: Term::new(granted.sent, granted.terms, granted.luck),
            renewal: None,
            before,
        }
    }

    fn renewed(self, ttl_ms: u64, luck: u16) -> Self {
        let Some(renewal) = self.renewal else {
            return self;
        };
        let terms = Terms {
            ttl_ms,
            mode: renewal.terms.map_or(self.terms.mode, |terms| terms.mode),
        };
        Self {
            terms,
            term: Term::new(renewal.sent, terms, luck),
            renewal: None,
            ..self
        }
    }
}
