//! What a daemon has in memory, and loses when it ends.

use std::collections::BTreeMap;

use img_lease::Proposal;
use img_lease::holder::{Moment, Renewal};
use img_testkit::home::Receipt;
use img_types::{CheckoutId, DaemonNonce, ImageId, Instance, RequestId};

use crate::clock::Millis;
use crate::content::Content;
use crate::wire::{Ask, View};

/// A daemon.
#[derive(Debug)]
pub struct Process {
    /// Which start, of all in a run.
    pub number: u64,
    /// What it says at Hello.
    pub nonce: DaemonNonce,
    /// Its connection.
    pub link: Link,
    /// What the home calls it.
    pub instance: Instance,
    /// Whether a newer daemon of its device is known.
    pub fenced: bool,
    /// Whether the home is behind or unlike what was seen; nothing is sent then.
    pub behind: bool,
    /// Calls that are not answered.
    pub calls: BTreeMap<u64, Outstanding>,
    /// The number of the next call.
    pub next_call: u64,
    /// What it has in memory of each checkout.
    pub desks: BTreeMap<CheckoutId, Desk>,
    /// The images as listed last.
    pub images: BTreeMap<ImageId, View>,
    /// Images whose commits are to be given back.
    pub forward: Vec<ImageId>,
    /// Since when leases have not been renewed over the present connection.
    pub greeted: bool,
}

/// A connection to the home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// None; the next try is then, and after it that much later.
    Down {
        /// When to try.
        at: Millis,
        /// The pause after that.
        pause: Millis,
    },
    /// Hello is under way.
    Greeting {
        /// The connection.
        connection: u64,
        /// Since when.
        since: Millis,
        /// The pause after it fails.
        pause: Millis,
    },
    /// The home answers.
    Up {
        /// The connection.
        connection: u64,
    },
}

/// A call that is not answered.
#[derive(Debug, Clone)]
pub struct Outstanding {
    /// What is asked.
    pub ask: Ask,
    /// What for.
    pub why: Why,
    /// When it was first sent.
    pub first: Moment,
    /// When it was last sent, and on which connection.
    pub last: (Millis, u64),
}

/// What a call is for.
#[derive(Debug, Clone)]
pub enum Why {
    /// To know.
    Look,
    /// To know a home that went back better.
    Prove,
    /// To keep a lease.
    Renew(CheckoutId, Renewal),
    /// To know what the home lacks, or to bring it.
    Upload(CheckoutId),
    /// To move a head.
    Commit(CheckoutId),
    /// A journaled call.
    Journal(RequestId, Job),
    /// To give commits back: what it lacks, or bringing it.
    Forward(ImageId, Vec<(Proposal, Receipt)>),
}

/// What a journaled call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Nobody waits for it any more.
    Nobody,
    /// A new checkout.
    Open(CheckoutId),
    /// A late commit.
    Late(CheckoutId),
    /// A branch.
    Branch(CheckoutId),
    /// A checkpoint that is to be known at home.
    Stage(CheckoutId),
    /// The end of a lease for one late commit.
    GiveBack(CheckoutId),
    /// The end of a checkout.
    Farewell(CheckoutId),
    /// A lease that nobody needs, or a pin.
    Aside,
    /// Commits given back to a home that lost them.
    Readmit,
}

/// What a daemon has in memory of a checkout.
#[derive(Debug, Clone, Default)]
pub struct Desk {
    /// What is there, synced or not.
    pub live: Content,
    /// What a person waits for.
    pub wish: Option<Wish>,
    /// What is under way.
    pub task: Option<Task>,
    /// The cut that is being committed: later ones wait for the next commit.
    pub target: Option<(u64, Content)>,
    /// Nothing is begun before.
    pub rests_until: Millis,
}

/// What a person waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A commit.
    Commit {
        /// Also from an orphan.
        adopt: bool,
        /// Also over staged work of another.
        take_over: bool,
    },
    /// A new image of what is here.
    Branch,
    /// The newest checkpoint at home.
    Stage,
}

/// What is under way for a checkout.
#[derive(Debug, Clone)]
pub enum Task {
    /// Bringing a content home, then this.
    Uploading(Content, Then),
    /// Waiting for the answer to a call.
    Waiting,
}

/// What follows an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Send the signed commit.
    Commit,
    /// Sign one.
    Sign,
    /// Take the lease for it.
    Acquire,
    /// Make a branch.
    Branch,
    /// Keep it beside the head.
    Stage,
}

impl Process {
    /// A daemon that starts.
    pub fn new(number: u64, nonce: DaemonNonce, now: Millis) -> Self {
        Self {
            number,
            nonce,
            link: Link::Down {
                at: now,
                pause: crate::clock::SECOND,
            },
            instance: Instance(0),
            fenced: false,
            behind: false,
            calls: BTreeMap::new(),
            next_call: 0,
            desks: BTreeMap::new(),
            images: BTreeMap::new(),
            forward: Vec::new(),
            greeted: false,
        }
    }

    /// The connection, if the home answers.
    pub fn connection(&self) -> Option<u64> {
        match self.link {
            Link::Up { connection } => Some(connection),
            Link::Down { .. } | Link::Greeting { .. } => None,
        }
    }
}
