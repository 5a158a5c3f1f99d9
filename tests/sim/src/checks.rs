//! What must hold, and what the checks remember in order to tell.
//!
//! Nothing here asks the code under test: grants, commits and writes are written down as they happen.

use std::collections::{BTreeMap, BTreeSet};

use img_lease::{ImageState, Lease, Proposal};
use img_testkit::home::{Answer, Call, Receipt, Standing};
use img_types::{
    CheckoutId, CommitId, DeviceId, Epoch, ImageId, Incarnation, ObjectId, RequestId, Token,
};

use crate::content::Content;
use crate::home::Home;
use crate::ids::short;
use crate::process::Then;
use crate::wire::{No, Told};

/// What really happened.
#[derive(Debug, Default)]
pub struct Truth {
    broken: Option<String>,
    processes: u64,
    connections: u64,
    writes: u64,
    durable: BTreeSet<u64>,
    excused: BTreeSet<u64>,
    cuts: BTreeMap<(usize, CheckoutId, u64), Content>,
    heard: BTreeSet<CommitId>,
    forged: BTreeSet<CommitId>,
    applied: BTreeMap<(u64, CommitId), ()>,
    /// Commits that the home acknowledged and has to have for ever.
    kept: BTreeMap<CommitId, Proposal>,
    lost: BTreeMap<CommitId, Proposal>,
    grants: BTreeMap<Granted, (DeviceId, CheckoutId, RequestId)>,
    /// The holder as the grants say.
    holders: BTreeMap<ImageId, (DeviceId, CheckoutId, Token)>,
    epochs: BTreeMap<(u64, ImageId), u64>,
    /// Checkouts that may have a lease which nobody waits for: from the thief of another's, or because a
    /// copy of a call came after another copy of it had been refused, which a home does not remember.
    pub losers: BTreeSet<CheckoutId>,
    refused: BTreeSet<RequestId>,
    /// How much of the home's log each machine has seen, and after how many restores.
    saw: BTreeMap<usize, (usize, u64)>,
    /// Where the log was cut by each restore.
    log_cuts: Vec<u64>,
    cloned: BTreeSet<DeviceId>,
    /// Restores that nobody declared.
    silent: u64,
    requests: BTreeMap<(u64, usize, DeviceId, RequestId, ImageId), Token>,
    /// Roots of commits whose image a person deleted.
    deleted: BTreeSet<ObjectId>,
}

/// One token: after how many silent restores, of which image, and its parts.
type Granted = (u64, ImageId, Incarnation, Epoch);

/// What a call found, before it ran.
#[derive(Debug)]
pub struct Found {
    image: Option<ImageState>,
    standing: Standing,
    newest: bool,
}

impl Truth {
    /// Notes that something does not hold; the first counts.
    pub fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    /// What does not hold.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// The number of a daemon start.
    pub fn next_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }

    /// The number of a connection.
    pub fn next_connection(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// The number of a write.
    pub fn next_write(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// How many commits the home has to have.
    pub fn commits(&self) -> usize {
        self.kept.len()
    }

    /// A device has acknowledged these writes as durable_local.
    pub fn durable(&mut self, writes: &[u64]) {
        self.durable.extend(writes);
    }

    /// A person gave these writes up.
    pub fn excuse(&mut self, writes: impl IntoIterator<Item = u64>) {
        self.excused.extend(writes);
    }

    /// A cut was taken.
    pub fn cut(&mut self, device: usize, checkout: CheckoutId, generation: u64, content: &Content) {
        self.cuts
            .insert((device, checkout, generation), content.clone());
    }

    /// A cut has the content that it was taken with.
    pub fn check_cut(
        &mut self,
        device: usize,
        checkout: CheckoutId,
        generation: u64,
        content: &Content,
    ) {
        let taken = self.cuts.get(&(device, checkout, generation));
        if taken.is_some_and(|taken| taken != content) {
            self.fail(|| format!("checkpoint {generation} of device{device} has changed"));
        }
    }

    /// A device has heard that a commit is in history.
    pub fn heard(&mut self, commit: CommitId) {
        self.heard.insert(commit);
        if self.forged.contains(&commit) {
            self.fail(|| "a misused token moved a head".to_owned());
        }
    }

    /// A commit that must never be in history.
    pub fn forged(&mut self, commit: CommitId) {
        self.forged.insert(commit);
    }

    /// An upload asks for what the outbox does not have.
    pub fn lost_objects(&mut self, device: &str, checkout: CheckoutId, then: Then) {
        // After a restore the home may lack what nobody had to keep.
        if self.log_cuts.is_empty() {
            self.fail(|| {
                format!(
                    "{device} lacks objects of c{} before {then:?}",
                    short(checkout.as_bytes())
                )
            });
        }
    }

    /// A commit was refused because of a head; its own checkout's commit is no stranger's.
    pub fn superseded_by(
        &mut self,
        device: DeviceId,
        checkout: CheckoutId,
        head: Option<CommitId>,
    ) {
        let own = head.and_then(|head| self.kept.get(&head));
        if own.is_some_and(|own| own.device == device && own.checkout == checkout)
            && !self.cloned.contains(&device)
            && self.log_cuts.is_empty()
        {
            self.fail(|| {
                format!(
                    "c{} was orphaned by its own commit",
                    short(checkout.as_bytes())
                )
            });
        }
    }

    /// A machine has seen so much of the log.
    pub fn saw(&mut self, device: usize, position: u64) {
        self.saw.insert(device, (self.log_cuts.len(), position));
    }

    /// A person at a machine accepted what the home is now.
    pub fn accepted(&mut self, device: usize) {
        self.saw.remove(&device);
    }

    /// A machine was cloned with all it has seen.
    pub fn copied(&mut self, from: usize, to: usize, device: DeviceId) {
        if let Some(saw) = self.saw.get(&from).copied() {
            self.saw.insert(to, saw);
        }
        let cuts = self
            .cuts
            .range((from, CheckoutId::from_bytes([0; 32]), 0)..);
        let cuts = cuts.take_while(|((of, _, _), _)| *of == from);
        let cuts: Vec<_> = cuts
            .map(|((_, checkout, generation), content)| {
                ((to, *checkout, *generation), content.clone())
            })
            .collect();
        self.cuts.extend(cuts);
        self.cloned.insert(device);
    }

    /// Whether a device's state was ever copied.
    pub fn is_cloned(&self, device: DeviceId) -> bool {
        self.cloned.contains(&device)
    }

    /// The home answered Hello: whoever saw what it lost must have been told.
    pub fn welcomed(&mut self, device: usize, seen: Option<Standing>) {
        // A Hello that was sent late says what the device knew then.
        let saw = self.saw.get(&device).copied();
        let Some((restores, position)) =
            saw.filter(|(_, position)| seen.is_some_and(|seen| seen.position.0 == *position))
        else {
            return;
        };
        let lost = self.log_cuts.iter().skip(restores);
        if lost.clone().any(|cut| position > *cut) {
            self.fail(|| {
                format!("device{device} saw more than the restored home has, and was welcome")
            });
        }
    }

    /// The home goes back to an old copy.
    pub fn restored(&mut self, old: &Home, silent: bool) {
        let Some(backup) = &old.backup else {
            return;
        };
        let rows = &backup.rows;
        self.log_cuts.push(rows.standing().position.0);
        let lost: Vec<_> = self
            .kept
            .iter()
            .filter(|(commit, _)| rows.commit(**commit).is_none())
            .map(|(commit, proposal)| (*commit, *proposal))
            .collect();
        for (commit, proposal) in lost {
            self.kept.remove(&commit);
            self.lost.insert(commit, proposal);
        }
        self.holders.clear();
        if silent {
            // What it grants until somebody proves what it was may repeat what it granted before.
            self.silent += 1;
            self.epochs.clear();
            for image in rows.images() {
                if let Some(lease) = image.lease {
                    let token = Token {
                        incarnation: rows.incarnation(),
                        epoch: lease.epoch,
                    };
                    self.holders
                        .insert(image.image, (lease.device, lease.checkout, token));
                }
            }
        } else {
            self.epochs.clear();
        }
    }

    /// Whether the home was ever an old copy of itself, and nobody said so.
    pub fn was_put_back(&self) -> bool {
        self.silent > 0
    }

    /// The home began a new incarnation: all leases are void.
    pub fn began_anew(&mut self, home: &Home, before: Incarnation) {
        self.holders.clear();
        let rows = home.rows();
        if rows.images().any(|image| image.lease.is_some()) {
            self.fail(|| "a restored home has leases of before".to_owned());
        }
        if rows.incarnation() == before {
            self.fail(|| "a restored home goes on as the same database".to_owned());
        }
    }

    /// What a call finds.
    pub fn before(
        home: &Home,
        device: DeviceId,
        nonce: img_types::DaemonNonce,
        call: &Call,
    ) -> Found {
        let rows = home.rows();
        let newest = rows.newest_daemon(device);
        Found {
            image: image_of(call).and_then(|image| rows.image(image)).cloned(),
            standing: rows.standing(),
            newest: newest.is_some_and(|daemon| daemon.nonce == nonce),
        }
    }

    /// What a call did.
    pub fn after(
        &mut self,
        home: &Home,
        device: DeviceId,
        request: RequestId,
        call: &Call,
        found: &Found,
        told: &Result<Told, No>,
    ) {
        let rows = home.rows();
        let image = image_of(call).and_then(|image| rows.image(image)).cloned();
        let standing = rows.standing();
        let changed = image != found.image || standing != found.standing;
        let Ok(Told::Done(answer, _)) = told else {
            if changed {
                self.fail(|| format!("a refused call has changed the home: {told:?}"));
            }
            if granted_to(call).is_some() {
                self.refused.insert(request);
            }
            return;
        };
        if changed && !found.newest && !matches!(call, Call::Branch { .. }) {
            self.fail(|| "an earlier daemon of a device has changed something".to_owned());
        }
        if let Some(image) = &image {
            let epoch = self.epochs.entry((self.silent, image.image)).or_default();
            if image.epoch.0 < *epoch {
                let (was, is) = (*epoch, image.epoch.0);
                self.fail(|| format!("an epoch went from {was} to {is}"));
            } else {
                *epoch = image.epoch.0;
            }
        }
        let moved =
            image.as_ref().and_then(|it| it.head) != found.image.as_ref().and_then(|it| it.head);
        match (call, answer) {
            (Call::Commit(proposal), Answer::Committed { receipt }) => {
                self.check_commit(home, proposal, receipt, found, moved);
            }
            (Call::Branch { first, .. }, Answer::Branched { token, receipt, .. }) => {
                self.check_receipt(home, receipt);
                if changed {
                    self.applied(first);
                    let to = (device, first.checkout);
                    self.granted(first.image, *token, to, request, None);
                }
            }
            (_, Answer::Granted { token, current, .. }) => {
                if changed {
                    self.check_grant(home, device, request, call, *token, found);
                } else if *current {
                    self.check_repeated(call, *token, request);
                }
            }
            (Call::Release { image, .. }, _) if changed => {
                self.holders.remove(image);
            }
            (Call::DeleteImage { image, .. }, _) => {
                self.holders.remove(image);
                let deleted: Vec<_> = self
                    .kept
                    .values()
                    .filter(|proposal| proposal.image == *image)
                    .copied()
                    .collect();
                self.deleted
                    .extend(deleted.iter().map(|proposal| proposal.root));
            }
            (Call::Readmit { image: of, .. }, _) if moved => {
                let epoch = image.as_ref().map(|image| image.epoch);
                let before = found.image.as_ref().map(|image| image.epoch);
                let lease = image.as_ref().and_then(|image| image.lease);
                if epoch <= before || lease.is_some() {
                    self.fail(|| "a readmission left a token current".to_owned());
                }
                self.holders.remove(of);
                self.readmitted(home, *of);
            }
            _ => {}
        }
        let moves = matches!(
            call,
            Call::Commit(_) | Call::Readmit { .. } | Call::Branch { .. }
        );
        if moved && !moves {
            self.fail(|| "a head moved without a commit".to_owned());
        }
    }

    fn check_commit(
        &mut self,
        home: &Home,
        proposal: &Proposal,
        receipt: &Receipt,
        found: &Found,
        moved: bool,
    ) {
        self.check_receipt(home, receipt);
        if !moved {
            return;
        }
        let before = found.image.as_ref().and_then(|image| image.head);
        if proposal.parent != before.map(|head| head.commit) {
            self.fail(|| "a commit is not based on the head before it".to_owned());
        }
        let own = (proposal.device, proposal.checkout);
        let holder = self.holders.get(&proposal.image);
        if holder.is_none_or(|(device, checkout, token)| {
            (*device, *checkout) != own || Some(*token) != proposal.token
        }) {
            self.fail(|| {
                format!(
                    "commit {} was made without the lease",
                    short(proposal.commit.as_bytes())
                )
            });
        }
        if self.forged.contains(&proposal.commit) {
            self.fail(|| "a misused token moved a head".to_owned());
        }
        self.applied(proposal);
    }

    fn applied(&mut self, proposal: &Proposal) {
        let key = (self.silent, proposal.commit);
        let again = self.applied.insert(key, ()).is_some();
        if again && !self.lost.contains_key(&proposal.commit) {
            self.fail(|| "a commit was applied twice".to_owned());
        }
        self.kept.insert(proposal.commit, *proposal);
        self.lost.remove(&proposal.commit);
    }

    fn check_receipt(&mut self, home: &Home, receipt: &Receipt) {
        if home.rows().commit(receipt.commit).is_none() {
            self.fail(|| "a commit was acknowledged that is not in history".to_owned());
        }
    }

    fn check_grant(
        &mut self,
        home: &Home,
        device: DeviceId,
        request: RequestId,
        call: &Call,
        token: Token,
        found: &Found,
    ) {
        let steals = matches!(call, Call::Steal { .. });
        let creates = matches!(call, Call::CreateImage { .. });
        let lease = found.image.as_ref().and_then(|image| image.lease);
        let Some((image, checkout)) = granted_to(call) else {
            return;
        };
        if !steals && !creates && lease.is_some_and(|lease| lease.outstanding()) {
            self.fail(|| "a lease was granted while another was outstanding".to_owned());
        }
        self.granted(image, token, (device, checkout), request, lease);
        if self.refused.contains(&request) {
            self.losers.insert(checkout);
        }
        if let Call::Steal {
            branch: Some((_, first)),
            ..
        } = call
        {
            self.applied(first);
            if let Some(lease) = home.rows().image(first.image).and_then(|it| it.lease) {
                self.losers.insert(lease.checkout);
                let token = Token {
                    incarnation: token.incarnation,
                    epoch: lease.epoch,
                };
                let to = (lease.device, lease.checkout);
                self.granted(first.image, token, to, request, None);
            }
        }
    }

    fn granted(
        &mut self,
        image: ImageId,
        token: Token,
        to: (DeviceId, CheckoutId),
        request: RequestId,
        before: Option<Lease>,
    ) {
        let own = before.is_some_and(|lease| {
            (lease.device, lease.checkout, lease.epoch) == (to.0, to.1, token.epoch)
        });
        let key = (self.silent, image, token.incarnation, token.epoch);
        let grant = (to.0, to.1, request);
        let twice = self.grants.insert(key, grant).is_some();
        if twice && !own {
            self.fail(|| {
                format!(
                    "token e{} of i{} was granted twice",
                    token.epoch,
                    short(image.as_bytes())
                )
            });
        }
        let again = self.requests.insert(
            (self.silent, self.log_cuts.len(), to.0, request, image),
            token,
        );
        if again.is_some_and(|again| again != token) {
            self.fail(|| "a request was granted twice".to_owned());
        }
        self.holders.insert(image, (to.0, to.1, token));
    }

    fn check_repeated(&mut self, call: &Call, token: Token, request: RequestId) {
        let Some((image, _)) = granted_to(call) else {
            return;
        };
        let grant = self
            .grants
            .get(&(self.silent, image, token.incarnation, token.epoch));
        if grant.is_some_and(|(_, _, of)| *of != request) {
            self.fail(|| "a repeated call was told another's grant".to_owned());
        }
    }

    fn readmitted(&mut self, home: &Home, image: ImageId) {
        let back: Vec<_> = self
            .lost
            .iter()
            .filter(|(commit, proposal)| {
                proposal.image == image && home.rows().commit(**commit).is_some()
            })
            .map(|(commit, proposal)| (*commit, *proposal))
            .collect();
        for (commit, proposal) in back {
            self.lost.remove(&commit);
            self.kept.insert(commit, proposal);
        }
    }

    /// Every acknowledged commit is there, complete, and every history is linear.
    pub fn check_history(&mut self, home: &Home, library: &crate::content::Library) {
        let kept: Vec<_> = self.kept.values().copied().collect();
        for proposal in &kept {
            if home.rows().commit(proposal.commit).is_none() {
                self.fail(|| "an acknowledged commit is gone".to_owned());
            }
            let content = library.open(proposal.root);
            if content.root() != proposal.root
                || content.objects().any(|id| !home.kept.objects.contains(&id))
            {
                self.fail(|| "an acknowledged commit is not complete".to_owned());
            }
        }
        for image in home.rows().images() {
            let mut next = image.head;
            while let Some(head) = next {
                let Some((proposal, _)) = home.record(head.commit) else {
                    self.fail(|| "a head has no commit".to_owned());
                    break;
                };
                if proposal.seq != head.seq || proposal.image != image.image {
                    self.fail(|| "a history has a gap".to_owned());
                    break;
                }
                next = match (proposal.seq.0, proposal.parent) {
                    (0, _) => None,
                    (seq, Some(parent)) => Some(img_lease::Head {
                        commit: parent,
                        seq: img_types::Seq(seq - 1),
                    }),
                    (_, None) => {
                        self.fail(|| "a history begins in the middle".to_owned());
                        None
                    }
                };
            }
        }
    }

    /// No write is lost: it is in a commit, or still at a device, or somebody gave it up.
    pub fn check_writes(&mut self, library: &crate::content::Library, at_devices: &BTreeSet<u64>) {
        let mut there = at_devices.clone();
        let kept = self.kept.values().chain(self.lost.values().filter(|lost| {
            // The home lost it after its device had been told: that device can give it back.
            self.heard.contains(&lost.commit)
        }));
        for proposal in kept {
            there.extend(library.open(proposal.root).writes());
        }
        for root in &self.deleted {
            there.extend(library.open(*root).writes());
        }
        let mut missing = self.durable.iter();
        let missing = missing.find(|write| !there.contains(write) && !self.excused.contains(write));
        if let Some(write) = missing.copied() {
            self.fail(|| format!("write {write} is lost"));
        }
    }
}

/// The image that a call is about.
pub fn image_of(call: &Call) -> Option<ImageId> {
    match call {
        Call::CreateImage { name, .. } => Some(name.image),
        Call::Acquire { image, .. }
        | Call::Renew { image, .. }
        | Call::Release { image, .. }
        | Call::Steal { image, .. }
        | Call::Unstage { image, .. }
        | Call::Readmit { image, .. }
        | Call::DeleteImage { image, .. } => Some(*image),
        Call::Commit(proposal) | Call::Stage(proposal) => Some(proposal.image),
        Call::Branch { first, .. } => Some(first.image),
        Call::Pin { .. } | Call::Unpin { .. } | Call::Revoke { .. } => None,
    }
}

/// To which checkout a call wants an image granted.
fn granted_to(call: &Call) -> Option<(ImageId, CheckoutId)> {
    match call {
        Call::Acquire { image, want } => Some((*image, want.checkout)),
        Call::Steal {
            image, checkout, ..
        } => Some((*image, *checkout)),
        Call::CreateImage { name, checkout, .. } => Some((name.image, *checkout)),
        _ => None,
    }
}
