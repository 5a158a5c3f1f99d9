//! What is wanted of a checkout, in the order of asking.
//!
//! ```text
//!  wanted ──begin──▶ under way ──committed, branched──▶ come true
//!                     │     └────refused for good─────▶ refused
//!                     └──the home is away, busy, full──▶ stays, and is begun again
//! ```
//!
//! The oldest come first: who commits, and then branches, finds at the image what was there at the commit, and the
//! rest in the branch. Those at the front that ask for the same become one commit. Knows no home and no disk.

use serde_json::Value;
use tokio::sync::oneshot;

use crate::checkouts::CommitRequest;
use crate::error::ApiError;
use crate::state::WishRow;

/// A commit that somebody wants.
#[derive(Debug)]
pub(in crate::checkouts) struct Wish {
    /// Its number in the database; nothing for what a release wants, which the checkout's stage keeps.
    pub(super) number: Option<u64>,
    /// The newest generation that it has to contain.
    pub(super) generation: u64,
    pub(super) request: CommitRequest,
    pub(super) under_way: bool,
    /// Nobody any more, where the home was away for long.
    pub(super) committed: Option<oneshot::Sender<Result<Value, ApiError>>>,
    /// Lost files that were taken out for it, as they are told.
    pub(super) left_out: Vec<Value>,
}

/// The wishes of one checkout.
#[derive(Debug, Default)]
pub(in crate::checkouts) struct Wishes(Vec<Wish>);

/// Wishes that become one commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// The newest generation that it has to contain.
    pub(super) generation: u64,
    pub(super) request: CommitRequest,
    /// Numbers of the wishes that it fulfils.
    pub(super) numbers: Vec<u64>,
    /// Whether it is to contain whatever there is, for a release.
    pub(super) is_last: bool,
}

impl Wish {
    /// Told to whoever waits for it; false if nobody does.
    pub(super) fn answer(&mut self, outcome: Result<Value, ApiError>) -> bool {
        let waiting = self.committed.take();
        waiting.is_some_and(|waiting| waiting.send(outcome).is_ok())
    }

    fn is_to_become(&self, name: &str) -> bool {
        self.request.branch.as_deref() == Some(name)
    }

    /// Whether nobody asked for it.
    pub(super) fn is_automatic(&self) -> bool {
        self.request.automatic
    }

    fn is_waited_for(&self) -> bool {
        let waiting = self.committed.as_ref();
        waiting.is_some_and(|waiting| !waiting.is_closed())
    }
}

impl From<WishRow> for Wish {
    fn from(row: WishRow) -> Self {
        Self {
            number: Some(row.number),
            generation: row.generation,
            request: row.request,
            under_way: row.under_way,
            committed: None,
            left_out: Vec::new(),
        }
    }
}

impl Wishes {
    /// What was wanted before the daemon ended.
    pub(super) fn of(rows: Vec<WishRow>) -> Self {
        Self(rows.into_iter().map(Wish::from).collect())
    }

    pub(super) fn push(&mut self, wish: Wish) {
        self.0.push(wish);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Wish> {
        self.0.iter()
    }

    /// The oldest wish, if its generation is sealed: no later one is fulfilled before it.
    pub(super) fn next(&self, sealed_upto: u64) -> Option<&Wish> {
        let oldest = self.0.first();
        oldest.filter(|wish| wish.generation <= sealed_upto)
    }

    /// Begins the next commit: for the oldest wishes that ask for the same and whose generations are sealed. The
    /// newest of them says what it contains, and what its message is, if it says something. What nobody asked for
    /// comes along with what somebody asked for later, but adds nothing to what somebody asked for before.
    pub(super) fn begin(&mut self, sealed_upto: u64) -> Option<Batch> {
        let first = self.next(sealed_upto)?.request.clone();
        for wish in &mut self.0 {
            wish.under_way = false;
        }
        let mut asked = false;
        let run = self.0.iter_mut().take_while(|wish| {
            let adds = asked && wish.is_automatic();
            asked |= !wish.is_automatic();
            wish.generation <= sealed_upto && asks_for_the_same(&wish.request, &first) && !adds
        });
        let mut batch = Batch {
            generation: 0,
            request: first.clone(),
            numbers: Vec::new(),
            is_last: false,
        };
        for wish in run {
            wish.under_way = true;
            batch.generation = batch.generation.max(wish.generation);
            batch.is_last |= wish.number.is_none();
            batch.request.automatic &= wish.is_automatic();
            batch.numbers.extend(wish.number);
            if !wish.request.message.is_empty() {
                batch.request.message.clone_from(&wish.request.message);
            }
        }
        Some(batch)
    }

    /// The commit that was signed for these is under way again, and what was begun after it is not.
    pub(super) fn resume(&mut self, signed: &[u64]) {
        for wish in &mut self.0 {
            wish.under_way = wish.number.is_some_and(|number| signed.contains(&number));
        }
    }

    /// Has the newest wish ask for a newer generation, if nobody asked for it and it is not under way. Returns its
    /// number.
    pub(super) fn move_automatic(&mut self, generation: u64) -> Option<u64> {
        let newest = self.0.last_mut()?;
        let waits = newest.is_automatic() && !newest.under_way;
        let number = newest.number.filter(|_| waits)?;
        newest.generation = generation;
        Some(number)
    }

    /// Whether there is one that nobody asked for, and whether there is one that somebody did.
    pub(super) fn askers(&self) -> (bool, bool) {
        let automatic = self.0.iter().any(Wish::is_automatic);
        (automatic, self.0.iter().any(|wish| !wish.is_automatic()))
    }

    /// Those that the commit under way is to fulfil.
    pub(super) fn under_way(&mut self) -> impl Iterator<Item = &mut Wish> {
        self.0.iter_mut().filter(|wish| wish.under_way)
    }

    /// Takes out those that the commit under way was to fulfil: it is settled, one way or the other.
    pub(super) fn settle(&mut self) -> Vec<Wish> {
        self.take(|wish| wish.under_way)
    }

    /// The numbers of those that are to become a branch of this name.
    pub(super) fn to_become(&self, name: &str) -> Vec<u64> {
        let to_become = self.0.iter().filter(|wish| wish.is_to_become(name));
        numbers(to_become)
    }

    /// The numbers of those that the commit under way is to fulfil.
    pub(super) fn numbers_under_way(&self) -> Vec<u64> {
        numbers(self.0.iter().filter(|wish| wish.under_way))
    }

    /// Takes out those that have come true because the checkout has become a branch.
    pub(super) fn become_branch(&mut self, name: &str) -> Vec<Wish> {
        self.take(|wish| wish.is_to_become(name))
    }

    /// Takes out what a release wants: it is wanted anew, if the release goes on.
    pub(super) fn forget_last(&mut self) {
        self.0.retain(|wish| wish.number.is_some());
    }

    /// Takes out all.
    pub(super) fn take_all(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.0)
    }

    /// Answers those who wait; all is wanted as before.
    pub(super) fn tell(&mut self, error: &ApiError) {
        for wish in &mut self.0 {
            wish.answer(Err(error.clone()));
        }
    }

    /// Whether somebody waits.
    pub(super) fn are_waited_for(&self) -> bool {
        self.0.iter().any(Wish::is_waited_for)
    }

    fn take(&mut self, is_taken: impl Fn(&Wish) -> bool) -> Vec<Wish> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(is_taken);
        self.0 = left;
        taken
    }
}

/// The numbers that wishes have in the database.
pub(super) fn numbers<'a>(wishes: impl IntoIterator<Item = &'a Wish>) -> Vec<u64> {
    wishes.into_iter().filter_map(|wish| wish.number).collect()
}

/// Whether one commit can fulfil both; what it says and who asked does not matter.
fn asks_for_the_same(one: &CommitRequest, other: &CommitRequest) -> bool {
    let CommitRequest {
        message: _,
        adopt_orphan,
        take_over,
        keep,
        branch,
        partial,
        automatic: _,
        onto,
    } = one;
    (adopt_orphan, take_over, keep) == (&other.adopt_orphan, &other.take_over, &other.keep)
        && (branch, partial, onto) == (&other.branch, &other.partial, &other.onto)
}

#[cfg(test)]
mod tests;
