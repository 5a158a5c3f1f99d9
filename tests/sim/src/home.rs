//! The home: testkit's rows around the rules, its objects, and what a crash of it loses.

use std::collections::{BTreeMap, BTreeSet};

use img_lease::Proposal;
use img_testkit::home::{Answer, Call, Failure, ModelHome, Mutant, Receipt, Standing};
use img_types::{CommitId, DaemonNonce, DeviceId, Incarnation, ObjectId, RequestId};

use crate::clock::{Clocks, MINUTE, Millis};
use crate::content::Library;
use crate::wire::{Ask, No, Told, View};

/// What a home keeps on its disks.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The database.
    pub rows: ModelHome,
    /// Objects that are durable.
    pub objects: BTreeSet<ObjectId>,
}

/// The home and its process.
#[derive(Debug)]
pub struct Home {
    /// What survives a crash.
    pub kept: Kept,
    /// A copy of before, as an operator or a hypervisor makes it.
    pub backup: Option<Kept>,
    /// Which database it was that could not be proved wrong; grows with every silent restore.
    pub timeline: u64,
    /// Whether the process runs.
    pub up: bool,
    /// The machine's clocks.
    pub clocks: Clocks,
    connections: BTreeMap<u64, (DeviceId, DaemonNonce)>,
    told_until: Millis,
}

impl Home {
    /// A new home.
    pub fn new(
        incarnation: Incarnation,
        devices: impl IntoIterator<Item = DeviceId>,
        mutant: Option<Mutant>,
        clocks: Clocks,
    ) -> Self {
        Self {
            kept: Kept {
                rows: ModelHome::new(incarnation, devices).with_mutant(mutant),
                objects: BTreeSet::new(),
            },
            backup: None,
            timeline: 0,
            up: true,
            clocks,
            connections: BTreeMap::new(),
            told_until: 0,
        }
    }

    /// The database.
    pub fn rows(&self) -> &ModelHome {
        &self.kept.rows
    }

    /// Lets running time pass up to now.
    pub fn pass_time(&mut self, now: Millis) {
        let elapsed = self.elapsed(now);
        if elapsed > 0 {
            self.kept.rows.advance(elapsed);
        }
        self.told_until = now;
    }

    /// The process ends: what was not persisted of the running time is lost, and so are connections.
    pub fn crash(&mut self, now: Millis) {
        let whole = self.elapsed(now) / MINUTE * MINUTE;
        self.kept.rows.advance(whole);
        self.up = false;
        self.connections.clear();
    }

    /// The process starts.
    pub fn start(&mut self, now: Millis) {
        self.kept.rows.restart();
        self.up = true;
        self.told_until = now;
    }

    /// Puts a copy of before in the place of the rows, as if nothing had happened.
    pub fn replace(&mut self, kept: Kept, now: Millis) {
        self.kept = kept;
        self.connections.clear();
        self.start(now);
    }

    /// Goes on with the rows of a new incarnation.
    pub fn begin_anew(&mut self, rows: ModelHome) {
        self.kept.rows = rows;
        self.connections.clear();
    }

    /// When the next deadline comes, in true time.
    pub fn next_deadline(&self, now: Millis) -> Option<Millis> {
        let leases = self.rows().images().filter_map(|image| image.lease);
        let held = leases.filter(|lease| !lease.lapsed);
        let next = held.map(|lease| match lease.remaining_ms {
            // Overdue, but in the grace after a start.
            0 => MINUTE,
            remaining => self.clocks.until(remaining),
        });
        next.min().map(|after| now + after)
    }

    /// Whether a connection is known, and whose it is.
    pub fn who(&self, connection: u64) -> Option<(DeviceId, DaemonNonce)> {
        self.connections.get(&connection).copied()
    }

    /// Answers Hello.
    ///
    /// # Errors
    /// As [`ModelHome::hello`].
    pub fn hello(
        &mut self,
        connection: u64,
        device: DeviceId,
        nonce: DaemonNonce,
        seen: Option<Standing>,
    ) -> Result<Told, No> {
        let greeted = self.kept.rows.hello(device, nonce, seen);
        // A fenced daemon is known too.
        if !matches!(greeted, Err(Failure::WentBack { .. })) {
            self.connections.insert(connection, (device, nonce));
        }
        greeted
            .map(|greeting| Told::Welcome(greeting.instance))
            .map_err(No::Home)
    }

    /// Answers what changes nothing but the object store.
    pub fn look(&mut self, ask: &Ask) -> Told {
        match ask {
            Ask::Images => {
                let live = self.rows().images();
                let live = live.filter(|image| image.tombstone_ms.is_none());
                let views = live.map(|state| View {
                    head: state.head_commit().and_then(|head| self.record(head)),
                    state: state.clone(),
                });
                Told::Images(self.rows().incarnation(), views.collect())
            }
            Ask::Log(image) => {
                let head = self.rows().image(*image).and_then(|image| image.head);
                let mut next = head.map(|head| head.commit);
                let mut log = Vec::new();
                while let Some((proposal, receipt)) = next.and_then(|next| self.record(next)) {
                    if proposal.image != *image {
                        break;
                    }
                    log.push((proposal, receipt));
                    next = proposal.parent;
                }
                log.reverse();
                Told::Log(log)
            }
            Ask::Missing(ids) => {
                let absent = ids.iter().filter(|id| !self.kept.objects.contains(*id));
                Told::Missing(absent.copied().collect())
            }
            Ask::Push(ids) => {
                self.kept.objects.extend(ids);
                Told::Durable
            }
            Ask::Hello { .. } | Ask::Prove(_) | Ask::Mutate(..) => Told::Heard,
        }
    }

    /// Runs a mutating call in one transaction; what it names has to be complete.
    ///
    /// # Errors
    /// It is refused and nothing has changed.
    pub fn mutate(
        &mut self,
        device: DeviceId,
        nonce: DaemonNonce,
        request: RequestId,
        call: &Call,
        library: &Library,
    ) -> Result<Told, No> {
        let by = self
            .kept
            .rows
            .connection(device, nonce)
            .ok_or(No::HelloFirst)?;
        let missing = self.missing_for(call, library);
        if !missing.is_empty() {
            return Err(No::Incomplete(missing));
        }
        let answer = self.kept.rows.call(by, request, call).map_err(No::Home)?;
        let head = match answer {
            Answer::Granted { head, .. } => {
                let head = head.and_then(|head| self.record(head.commit));
                head.map(Box::new)
            }
            _ => None,
        };
        Ok(Told::Done(answer, head))
    }

    /// A commit with its receipt.
    pub fn record(&self, commit: CommitId) -> Option<(Proposal, Receipt)> {
        let row = self.rows().commit(commit)?;
        Some((row.proposal, row.receipt))
    }

    fn missing_for(&self, call: &Call, library: &Library) -> Vec<ObjectId> {
        let new: Vec<Proposal> = match call {
            Call::Commit(proposal)
            | Call::Stage(proposal)
            | Call::Branch {
                first: proposal, ..
            }
            | Call::Steal {
                branch: Some((_, proposal)),
                ..
            } => vec![*proposal],
            Call::Readmit { commits, .. } => {
                commits.iter().map(|(proposal, _)| *proposal).collect()
            }
            _ => Vec::new(),
        };
        let known = |proposal: &&Proposal| self.rows().commit(proposal.commit).is_none();
        let roots = new.iter().filter(known).map(|proposal| proposal.root);
        let needed = roots.flat_map(|root| {
            let content = library.open(root);
            let objects: Vec<_> = content.objects().chain([root]).collect();
            objects
        });
        let missing: BTreeSet<_> = needed
            .filter(|id| !self.kept.objects.contains(id))
            .collect();
        missing.into_iter().collect()
    }

    fn elapsed(&self, now: Millis) -> u64 {
        let (then, now) = (self.clocks.moment(self.told_until), self.clocks.moment(now));
        now.boot.since(then.boot)
    }
}
