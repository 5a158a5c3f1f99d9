//! One level of an old and a new tree while the new one is written.

use std::collections::BTreeSet;
use std::sync::Arc;

use img_seal::Reference;
use img_types::ObjectId;

use crate::cursor::Cursor;
use crate::node::{Node, OpenNode};
use crate::tree::{Absent, ReadError};

/// How far old entries are removed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound<'a> {
    /// Those below the key.
    Before(&'a [u8]),
    /// Those below the key, and the key.
    Through(&'a [u8]),
    /// All.
    End,
}

impl Bound<'_> {
    pub(super) fn covers(self, key: &[u8]) -> bool {
        match self {
            Self::Before(bound) => key < bound,
            Self::Through(bound) => key <= bound,
            Self::End => true,
        }
    }

    /// Tells whether it may cover keys above `key`.
    pub(super) fn reaches_beyond(self, key: &[u8]) -> bool {
        match self {
            Self::Before(bound) | Self::Through(bound) => key < bound,
            Self::End => true,
        }
    }
}

/// One level of both trees.
pub(super) struct Level {
    pub(super) place: Place,
    /// The old node at the place, once it is looked into.
    pub(super) node: Option<Arc<Node>>,
    /// The next old entry of `node`; never beyond its last.
    pub(super) next: usize,
    /// Entries of the new node.
    pub(super) open: OpenNode,
    pub(super) likeness: Likeness,
    pub(super) in_step: bool,
    /// Whether an old node has been left as it is by moving past it.
    pub(super) kept: bool,
    /// Whether a new node has been cut.
    pub(super) cut: bool,
    /// Whether a cut node was not an old one.
    pub(super) sealed: bool,
}

/// Where a level stands in the old tree.
#[derive(Debug)]
pub(super) enum Place {
    /// At its first node.
    Start,
    /// At a node.
    At(Cursor),
    /// Behind its last node.
    End,
}

/// How the open node compares with an old one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Likeness {
    /// It is none that is known.
    None,
    /// It has all entries of the old node at the place, up to the next one.
    Beginning,
    /// It has exactly the entries of this old node.
    Whole(Reference),
}

/// What kept the writer from going on somewhere.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) absent: Vec<Reference>,
    pub(super) known: BTreeSet<ObjectId>,
    pub(super) misplaced: Option<ObjectId>,
}

impl Trouble {
    /// Takes the value, or keeps in mind why there is none.
    pub(super) fn unless<T>(&mut self, result: Result<T, ReadError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(ReadError::Absent(Absent(references))) => {
                for reference in references {
                    if self.known.insert(reference.id) {
                        self.absent.push(reference);
                    }
                }
                None
            }
            Err(ReadError::Misplaced(id)) => {
                self.misplaced = Some(id);
                None
            }
        }
    }
}

impl Level {
    pub(super) fn new(level: usize, place: Place) -> Self {
        Self {
            place,
            node: None,
            next: 0,
            open: OpenNode::new(level as u8),
            likeness: Likeness::None,
            in_step: true,
            kept: false,
            cut: false,
            sealed: false,
        }
    }

    /// Gives up what is open; the result will not be used.
    pub(super) fn abandon(&mut self) {
        self.open.clear();
        self.likeness = Likeness::None;
        self.node = None;
        self.next = 0;
        self.in_step = true;
    }

    pub(super) fn at_left_edge(&self) -> bool {
        self.next == 0
    }

    pub(super) fn is_moved_by(&self, cursor: &Cursor) -> bool {
        match &self.place {
            Place::At(here) => !here.same_place(cursor),
            Place::Start => !cursor.is_first(),
            Place::End => false,
        }
    }
}
