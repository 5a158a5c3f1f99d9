//! A home in memory: rows as the server keeps them, around the very lease rules that ship.
//!
//! Every call goes the way of `server/src/calls`: who calls, what was answered before, the effect, and its
//! outcome, in that order and all or nothing. No rule is decided here; what is missing beside the server is
//! what lies outside of the rules: signatures, objects and their completeness, quotas, names that change.
//! Time passes when the caller says so. Two homes with equal rows are equal, so that a model can tell
//! whether it has been somewhere before.

mod call;
mod mutant;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use img_lease::grantor::{self, Grace, History};
use img_lease::{Caller, Daemon, Effect, ImageState, Pin, Proposal};
use img_records::{LogEntry, LogKind};
use img_types::limits::LEASE_TTL_DEFAULT;
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, Epoch, ImageId, Incarnation, LogPosition, NameTag,
    RequestId, WallMillis,
};

pub use call::{Answer, Call, Connection, Failure, Greeting, Naming, Receipt, Standing};
pub use mutant::Mutant;
pub use rows::{CommitRow, ImageRow, LogRow};

/// A home's rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelHome {
    incarnation: Incarnation,
    members: BTreeSet<DeviceId>,
    /// The daemon starts of each device, the newest last.
    daemons: BTreeMap<DeviceId, Vec<Daemon>>,
    images: BTreeMap<ImageId, ImageRow>,
    commits: BTreeMap<CommitId, CommitRow>,
    pins: BTreeMap<(CommitId, CheckoutId), Pin>,
    requests: BTreeMap<(DeviceId, RequestId), (u64, Answer)>,
    log: Vec<LogRow>,
    uptime_ms: u64,
    mutant: Option<Mutant>,
}

impl ModelHome {
    /// Founds a home with its members.
    pub fn new(incarnation: Incarnation, members: impl IntoIterator<Item = DeviceId>) -> Self {
        Self {
            incarnation,
            members: members.into_iter().collect(),
            daemons: BTreeMap::new(),
            images: BTreeMap::new(),
            commits: BTreeMap::new(),
            pins: BTreeMap::new(),
            requests: BTreeMap::new(),
            log: Vec::new(),
            // Nothing is of before the first start.
            uptime_ms: 1,
            mutant: None,
        }
    }

    /// Gives the home a fault.
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<Mutant>) -> Self {
        self.mutant = mutant;
        self
    }

    /// Registers a daemon start and compares logs.
    ///
    /// # Errors
    /// The log is not the one that the device has seen, the device is no member, or this start was
    /// superseded; such a fenced daemon is known by [`ModelHome::connection`] all the same.
    pub fn hello(
        &mut self,
        device: DeviceId,
        nonce: DaemonNonce,
        seen: Option<Standing>,
    ) -> Result<Greeting, Failure> {
        if !self.members.contains(&device) {
            return Err(img_lease::Refused::NotMember.into());
        }
        let mut at_seen = None;
        if let Some(seen) = seen {
            at_seen = self.standing_at(seen.position);
            if at_seen.map(|at| at.root) != Some(seen.root) {
                return Err(Failure::WentBack { at_seen });
            }
        }
        let starts = self.daemons.entry(device).or_default();
        let earlier = starts.iter().any(|daemon| daemon.nonce == nonce);
        let daemon = grantor::hello(starts.last(), nonce, earlier)?;
        if !earlier {
            starts.push(daemon);
        }
        Ok(Greeting {
            instance: daemon.instance,
            at_seen,
        })
    }

    /// The connection of a daemon that has said Hello here, also of a fenced one.
    pub fn connection(&self, device: DeviceId, nonce: DaemonNonce) -> Option<Connection> {
        let start = self.daemons.get(&device)?.iter();
        let daemon = start.clone().find(|daemon| daemon.nonce == nonce)?;
        Some(Connection {
            device,
            instance: daemon.instance,
        })
    }

    /// Runs a mutating call, or repeats the answer that it got before.
    ///
    /// # Errors
    /// The call is refused and has changed nothing.
    pub fn call(
        &mut self,
        by: Connection,
        request: RequestId,
        call: &Call,
    ) -> Result<Answer, Failure> {
        let caller = self.caller(by);
        // A fenced daemon may only branch what it has.
        match call {
            Call::Branch { .. } => caller.belongs()?,
            _ => caller.acts()?,
        }
        let hash = hash(call);
        let earlier = self.requests.get(&(by.device, request));
        if let Some((kept, earlier)) = earlier.filter(|_| !self.has(Mutant::NoIdempotency)) {
            if *kept != hash {
                return Err(Failure::RequestReused);
            }
            return self.standing_of(&caller, call, *earlier);
        }
        let before = self.clone();
        match self.run(&caller, call) {
            Ok(answer) => {
                let key = (by.device, request);
                self.requests.insert(key, (hash, answer));
                Ok(answer)
            }
            Err(why) => {
                if !self.keeps_refused(&why) {
                    *self = before;
                }
                Err(why)
            }
        }
    }

    /// Lets the home's running time pass.
    pub fn advance(&mut self, elapsed_ms: u64) {
        let images: Vec<_> = self.images.keys().copied().collect();
        let before_ms = self.uptime_ms;
        self.uptime_ms = before_ms.saturating_add(elapsed_ms);
        for image in images {
            self.tick(image, before_ms, elapsed_ms);
        }
        let pins = std::mem::take(&mut self.pins).into_values();
        self.pins = pins
            .filter_map(|pin| grantor::tick_pin(&pin, elapsed_ms))
            .map(|pin| ((pin.commit, pin.checkout), pin))
            .collect();
    }

    /// Lets time pass for one image alone: its deadline comes at whatever moment.
    pub fn advance_image(&mut self, image: ImageId, elapsed_ms: u64) {
        self.tick(image, self.uptime_ms, elapsed_ms);
    }

    /// Starts again: all rows stand, and leases of before have a grace.
    pub fn restart(&mut self) {
        self.uptime_ms = 0;
    }

    /// Lets a restart's grace end, and no deadline come: what is due then comes with the next tick.
    pub fn end_grace(&mut self) {
        let grace_ms = u64::try_from(LEASE_TTL_DEFAULT.as_millis()).unwrap_or(u64::MAX);
        self.uptime_ms = self.uptime_ms.max(grace_ms);
    }

    /// The home that an operator makes of this state as a backup, under a new incarnation.
    #[must_use]
    pub fn restored(&self, incarnation: Incarnation) -> Self {
        let mut home = self.clone();
        home.restart();
        if self.has(Mutant::RestoreKeepsIncarnation) {
            return home;
        }
        home.name(home.incarnation);
        home.incarnation = incarnation;
        for row in home.images.values_mut() {
            row.state = grantor::restored(&row.state);
        }
        home.name(incarnation);
        home
    }

    /// The home that goes on under a new incarnation because a receipt of `shown` proves that its rows are not the
    /// newest of its own; nothing if it does not.
    #[must_use]
    pub fn proved(&self, shown: Standing, incarnation: Incarnation) -> Option<Self> {
        let known = if shown.incarnation == self.incarnation {
            self.standing_at(shown.position).map(|here| here.root) == Some(shown.root)
        } else {
            self.names(shown.incarnation)
        };
        if known {
            return None;
        }
        let mut home = self.clone();
        home.name(shown.incarnation);
        Some(home.restored(incarnation))
    }

    /// Where the home stands.
    pub fn standing(&self) -> Standing {
        Standing {
            incarnation: self.incarnation,
            position: LogPosition(self.log.len() as u64),
            root: self.log.last().map_or(LogEntry::EMPTY_ROOT, |row| row.root),
        }
    }

    /// An image's rows, deleted or not.
    pub fn image(&self, image: ImageId) -> Option<&ImageState> {
        self.images.get(&image).map(|row| &row.state)
    }

    /// All images, deleted ones too.
    pub fn images(&self) -> impl Iterator<Item = &ImageState> {
        self.images.values().map(|row| &row.state)
    }

    /// A commit that is in history.
    pub fn commit(&self, commit: CommitId) -> Option<&CommitRow> {
        self.commits.get(&commit)
    }

    /// Whether commits have been given back to this home.
    pub fn has_readmitted(&self) -> bool {
        let mut log = self.log.iter();
        log.any(|row| row.entry.kind == LogKind::Readmit)
    }

    /// Pins that hold.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.pins.values()
    }

    /// The log, oldest first.
    pub fn log(&self) -> &[LogRow] {
        &self.log
    }

    /// The newest daemon start of a device.
    pub fn newest_daemon(&self, device: DeviceId) -> Option<Daemon> {
        self.daemons.get(&device)?.last().copied()
    }

    /// Whether the device is on the roster.
    pub fn is_member(&self, device: DeviceId) -> bool {
        self.members.contains(&device)
    }

    /// The home's database.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How long the home has been running.
    pub fn uptime_ms(&self) -> u64 {
        self.uptime_ms
    }

    fn caller(&self, by: Connection) -> Caller {
        let newest = self.newest_daemon(by.device);
        let newest = newest.map_or(by.instance, |daemon| daemon.instance);
        Caller {
            device: by.device,
            member: self.members.contains(&by.device),
            instance: self.shown_instance(by.instance, newest),
            newest_instance: newest,
            incarnation: self.incarnation,
        }
    }

    fn tick(&mut self, image: ImageId, written_ms: u64, elapsed_ms: u64) {
        let Some(row) = self.images.get_mut(&image) else {
            return;
        };
        let lease = row.state.lease.as_ref();
        let grace = lease.map_or(Grace::over(), |lease| {
            Grace::of(lease, written_ms, self.uptime_ms)
        });
        row.state = grantor::tick(&row.state, self.incarnation, elapsed_ms, grace);
    }

    fn standing_at(&self, position: LogPosition) -> Option<Standing> {
        let root = match position.0.checked_sub(1) {
            None => LogEntry::EMPTY_ROOT,
            Some(last) => self.log.get(usize::try_from(last).ok()?)?.root,
        };
        Some(Standing {
            position,
            root,
            ..self.standing()
        })
    }

    /// Writes down that this home has or had an incarnation, unless the log says so.
    fn name(&mut self, incarnation: Incarnation) {
        if !self.names(incarnation) {
            let subject = *incarnation.as_bytes();
            self.log_line(LogKind::Incarnation, NO_IMAGE, subject, NO_DEVICE, Epoch(0));
        }
    }

    fn names(&self, incarnation: Incarnation) -> bool {
        self.log.iter().any(|row| {
            row.entry.kind == LogKind::Incarnation && row.entry.subject == *incarnation.as_bytes()
        })
    }

    fn apply(&mut self, effect: &Effect, device: DeviceId) {
        let state = &effect.image;
        if let Some(row) = self.images.get_mut(&state.image) {
            row.state = state.clone();
        }
        for line in &effect.log {
            let (kind, subject) = rows::line(line, state);
            self.log_line(kind, state.image, subject, device, state.epoch);
        }
    }

    fn log_line(
        &mut self,
        kind: LogKind,
        image: ImageId,
        subject: [u8; 32],
        device: DeviceId,
        epoch: Epoch,
    ) {
        let entry = LogEntry {
            kind,
            image,
            subject,
            device,
            epoch,
            time: WallMillis(0),
        };
        let root = LogEntry::chain(self.standing().root, &entry);
        self.log.push(LogRow { entry, root });
    }

    fn live_image(&self, image: ImageId) -> Result<ImageState, Failure> {
        let state = self
            .image(image)
            .filter(|state| state.tombstone_ms.is_none());
        Ok(state.ok_or(img_lease::Refused::UnknownImage)?.clone())
    }

    fn named(&self, tag: NameTag) -> Option<&ImageState> {
        let mut rows = self.images.values();
        let row = rows.find(|row| row.tag == tag && row.state.tombstone_ms.is_none());
        row.map(|row| &row.state)
    }

    fn history(&self, proposal: &Proposal) -> History {
        History {
            has_commit: self.commits.contains_key(&proposal.commit),
            has_parent: proposal.parent.is_none_or(|parent| {
                let known = self.commits.get(&parent);
                known.is_some_and(|known| known.proposal.image == proposal.image)
            }),
        }
    }
}

/// The image of a log line that concerns none.
const NO_IMAGE: ImageId = ImageId::from_bytes([0; 32]);
/// The device of a log line that the home wrote by itself.
const NO_DEVICE: DeviceId = DeviceId::from_bytes([0; 32]);

fn hash(call: &Call) -> u64 {
    let mut hasher = DefaultHasher::new();
    call.hash(&mut hasher);
    hasher.finish()
}
