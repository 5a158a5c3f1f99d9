//! What an upload has to do next: a core without I/O, shared by outboxes and imports.
//!
//! ```text
//!           question       answer: absent       take_next      acknowledged
//!  unasked ──────────▶ asked ─────────────▶ absent ─────▶ sent ──────────────▶ done
//!     ▲                 │ └─ answer: present ─┼────────────┼───────────────────▶
//!     └──── broken ─────┴─────────────────────┴────────────┘
//! ```
//!
//! Objects keep the order in which they were added, so that children that come first arrive first. At most
//! one question is under way. After a break everything that is not done is asked for again: what had arrived
//! without an acknowledgement is found present, and nothing is sent twice but what was cut in two.

use std::collections::{BTreeSet, VecDeque};

use img_types::ObjectId;
use img_types::limits::IDS_PER_REQUEST_MAX;

/// The objects of one upload that the home is not known to have.
#[derive(Debug, Default)]
pub struct UploadPlan {
    unasked: VecDeque<ObjectId>,
    asked: Vec<ObjectId>,
    absent: VecDeque<ObjectId>,
    sent: VecDeque<ObjectId>,
    acknowledged: u64,
    waiting: BTreeSet<ObjectId>,
    closed: bool,
}

/// What a push sends next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This object.
    Send(ObjectId),
    /// Nothing before a question is answered or an object is added.
    Wait,
    /// Nothing any more: the push can end.
    End,
}

/// The home's answer does not fit what was asked or sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the home's answer does not fit what was sent")]
pub struct Unfitting;

impl UploadPlan {
    /// Plans for objects that are all known from the beginning.
    pub fn of(ids: impl IntoIterator<Item = ObjectId>) -> Self {
        let mut plan = Self::default();
        for id in ids {
            plan.add(id);
        }
        plan.close();
        plan
    }

    /// Adds an object; false if it waits already.
    pub fn add(&mut self, id: ObjectId) -> bool {
        let new = self.waiting.insert(id);
        if new {
            self.unasked.push_back(id);
        }
        new
    }

    /// Says that nothing will be added any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The next question, unless one is under way or there is nothing to ask.
    pub fn question(&mut self) -> Option<Vec<ObjectId>> {
        if !self.asked.is_empty() || self.unasked.is_empty() {
            return None;
        }
        let len = self.unasked.len().min(IDS_PER_REQUEST_MAX);
        self.asked = self.unasked.drain(..len).collect();
        Some(self.asked.clone())
    }

    /// Takes the positions, in the question, of the objects that the home lacks. Returns the others,
    /// which are done.
    ///
    /// # Errors
    /// The positions are not ascending or beyond the question.
    pub fn answer(&mut self, absent: &[u32]) -> Result<Vec<ObjectId>, Unfitting> {
        let ascending = absent.windows(2).all(|pair| pair[0] < pair[1]);
        let within = absent
            .last()
            .is_none_or(|last| (*last as usize) < self.asked.len());
        if !ascending || !within {
            return Err(Unfitting);
        }
        let mut absent = absent.iter().peekable();
        let mut present = Vec::new();
        for (position, id) in self.asked.drain(..).enumerate() {
            if absent.next_if(|next| **next as usize == position).is_some() {
                self.absent.push_back(id);
            } else {
                self.waiting.remove(&id);
                present.push(id);
            }
        }
        Ok(present)
    }

    /// Whether every object has been asked for and nothing will be added.
    pub fn all_asked(&self) -> bool {
        self.closed && self.unasked.is_empty() && self.asked.is_empty()
    }

    /// What the present push sends next.
    pub fn take_next(&mut self) -> Next {
        match self.absent.pop_front() {
            Some(id) => {
                self.sent.push_back(id);
                Next::Send(id)
            }
            None if self.all_asked() => Next::End,
            None => Next::Wait,
        }
    }

    /// Whether there is something to send.
    pub fn has_absent(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Takes the number of objects of the present push that are durable. Returns those that are new.
    ///
    /// # Errors
    /// The number went down, or is more than was sent.
    pub fn acknowledge(&mut self, objects: u64) -> Result<Vec<ObjectId>, Unfitting> {
        let new = objects.checked_sub(self.acknowledged).ok_or(Unfitting)?;
        let new = usize::try_from(new).map_err(|_| Unfitting)?;
        if new > self.sent.len() {
            return Err(Unfitting);
        }
        self.acknowledged = objects;
        let done: Vec<_> = self.sent.drain(..new).collect();
        for id in &done {
            self.waiting.remove(id);
        }
        Ok(done)
    }

    /// A push ended well: the next one counts its acknowledgements anew.
    pub fn push_ended(&mut self) {
        self.acknowledged = 0;
    }

    /// The connection or the session broke: what is known of the home counts no longer.
    pub fn broken(&mut self) {
        self.acknowledged = 0;
        let before = std::mem::take(&mut self.unasked);
        self.unasked.extend(self.sent.drain(..));
        self.unasked.extend(self.absent.drain(..));
        self.unasked.extend(self.asked.drain(..));
        self.unasked.extend(before);
    }

    /// Whether everything is done.
    pub fn is_finished(&self) -> bool {
        self.closed && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u16) -> ObjectId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        ObjectId::from_bytes(bytes)
    }

    #[test]
    fn an_upload_from_question_to_acknowledgement() {
        let mut plan = UploadPlan::of([id(1), id(2), id(3)]);
        assert_eq!(plan.take_next(), Next::Wait);
        assert_eq!(plan.question(), Some(vec![id(1), id(2), id(3)]));
        assert_eq!(plan.question(), None, "one at a time");
        assert_eq!(plan.answer(&[0, 2]), Ok(vec![id(2)]));
        assert_eq!(plan.take_next(), Next::Send(id(1)));
        assert_eq!(plan.take_next(), Next::Send(id(3)));
        assert_eq!(plan.take_next(), Next::End);
        assert_eq!(plan.acknowledge(1), Ok(vec![id(1)]));
        assert!(!plan.is_finished());
        assert_eq!(plan.acknowledge(2), Ok(vec![id(3)]));
        assert!(plan.is_finished());
    }

    #[test]
    fn an_object_waits_once_but_may_come_again_when_it_is_done() {
        let mut plan = UploadPlan::default();
        assert!(plan.add(id(1)));
        assert!(!plan.add(id(1)));
        plan.question();
        plan.answer(&[]).unwrap();
        assert!(plan.add(id(1)));
        assert!(!plan.is_finished());
    }

    #[test]
    fn answers_that_do_not_fit_are_refused() {
        let mut plan = UploadPlan::of([id(1), id(2)]);
        plan.question();
        for positions in [&[1, 0][..], &[0, 0], &[2]] {
            assert_eq!(plan.answer(positions), Err(Unfitting));
        }
        plan.answer(&[0, 1]).unwrap();
        plan.take_next();
        assert_eq!(plan.acknowledge(2), Err(Unfitting), "more than was sent");
        plan.acknowledge(1).unwrap();
        assert_eq!(plan.acknowledge(0), Err(Unfitting), "fewer than before");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u16),
        Ask,
        Answer,
        Send,
        Acknowledge(prop::sample::Index),
        Break(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..400u16).prop_map(Step::Add),
            3 => Just(Step::Ask),
            3 => Just(Step::Answer),
            6 => Just(Step::Send),
            3 => any::<prop::sample::Index>().prop_map(Step::Acknowledge),
            2 => any::<prop::sample::Index>().prop_map(Step::Break),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// Against a home that keeps what arrived, acknowledged or not: nothing is lost, nothing that it has
        /// is sent again, and a calm end always gets everything there, in order.
        #[test]
        fn everything_arrives_whatever_breaks(steps in steps(), had in prop::collection::btree_set(0..400u16, 0..200)) {
            let mut plan = UploadPlan::default();
            let mut home: BTreeSet<_> = had.into_iter().map(id).collect();
            let mut added = BTreeSet::new();
            let mut question: Option<Vec<ObjectId>> = None;
            let mut push: Vec<ObjectId> = Vec::new();
            let mut durable = 0;
            for step in steps {
                match step {
                    Step::Add(n) => {
                        plan.add(id(n));
                        added.insert(id(n));
                    }
                    Step::Ask => question = plan.question().or(question),
                    Step::Answer => {
                        if let Some(ids) = question.take() {
                            let absent: Vec<u32> = (0..).zip(&ids).filter(|(_, id)| !home.contains(id)).map(|(at, _)| at).collect();
                            let present = plan.answer(&absent).unwrap();
                            prop_assert!(present.iter().all(|id| home.contains(id)));
                        }
                    }
                    Step::Send => {
                        if let Next::Send(id) = plan.take_next() {
                            prop_assert!(!home.contains(&id), "sent what the home has");
                            push.push(id);
                        }
                    }
                    Step::Acknowledge(pick) => {
                        durable += pick.index(push.len() - durable + 1);
                        home.extend(&push[..durable]);
                        let done = plan.acknowledge(durable as u64).unwrap();
                        prop_assert!(done.iter().all(|id| home.contains(id)));
                    }
                    Step::Break(pick) => {
                        // More may have arrived than was acknowledged.
                        let arrived = durable + pick.index(push.len() - durable + 1);
                        home.extend(&push[..arrived]);
                        plan.broken();
                        question = None;
                        push.clear();
                        durable = 0;
                    }
                }
            }
            plan.close();
            plan.broken();
            let order: Vec<_> = plan.unasked.iter().copied().collect();
            while let Some(ids) = plan.question() {
                prop_assert!(ids.len() <= IDS_PER_REQUEST_MAX);
                let absent: Vec<u32> = (0..).zip(&ids).filter(|(_, id)| !home.contains(id)).map(|(at, _)| at).collect();
                plan.answer(&absent).unwrap();
            }
            let mut push = Vec::new();
            while let Next::Send(id) = plan.take_next() {
                push.push(id);
            }
            prop_assert!(order.iter().filter(|id| push.contains(id)).eq(&push));
            plan.acknowledge(push.len() as u64).unwrap();
            home.extend(push);
            prop_assert!(plan.is_finished());
            prop_assert!(added.is_subset(&home));
        }
    }
}
