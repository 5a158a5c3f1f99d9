//! Tells when all answers that were made before a moment have been given.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Counts answers between the look at the tree and the word to the kernel.
#[derive(Debug, Default)]
pub(super) struct Gate {
    inside: Mutex<Inside>,
    left: Condvar,
}

/// Those of two turns: the one that enters now, and the one before.
#[derive(Debug, Default)]
struct Inside {
    turn: usize,
    counts: [usize; 2],
}

/// An answer that is being made.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    turn: usize,
}

impl Gate {
    /// Counts an answer until its pass is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Pass {
        let mut inside = self.lock();
        let turn = inside.turn;
        inside.counts[turn] += 1;
        Pass {
            gate: Arc::clone(self),
            turn,
        }
    }

    /// Returns when all who are inside now have left; others may enter meanwhile. For one caller at a time.
    pub(super) fn wait_for_those_inside(&self) {
        let mut inside = self.lock();
        let before = inside.turn;
        inside.turn = 1 - before;
        let left = self
            .left
            .wait_while(inside, |inside| inside.counts[before] > 0);
        drop(left.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Nobody panics between two lines of counting.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        inside.counts[self.turn] -= 1;
        if inside.counts[self.turn] == 0 {
            self.gate.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn those_of_before_are_waited_for_and_later_ones_are_not() {
        let gate = Arc::new(Gate::default());
        gate.wait_for_those_inside();
        for _ in 0..3 {
            let (first, second) = (gate.enter(), gate.enter());
            let (waited, done) = mpsc::channel();
            let waiting = Arc::clone(&gate);
            let turn = gate.lock().turn;
            let waiter = thread::spawn(move || {
                waiting.wait_for_those_inside();
                waited.send(()).unwrap();
            });
            while gate.lock().turn == turn {
                thread::yield_now();
            }
            let later = gate.enter();
            drop(first);
            assert_eq!(done.try_recv(), Err(mpsc::TryRecvError::Empty));
            drop(second);
            done.recv().unwrap();
            waiter.join().unwrap();
            drop(later);
        }
    }
}
