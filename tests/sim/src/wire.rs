//! What travels between a device and the home.

use img_lease::{Head, ImageState, Lease, Proposal};
use img_testkit::home::{Answer, Call, Failure, Receipt, Standing};
use img_types::{DaemonNonce, ImageId, Incarnation, Instance, ObjectId, RequestId};

/// One request on one connection.
#[derive(Debug, Clone)]
pub struct Request {
    /// The sender's machine.
    pub from: usize,
    /// The daemon start that sent it.
    pub process: u64,
    /// The connection.
    pub connection: u64,
    /// The sender's number for it.
    pub number: u64,
    /// What the sender had seen of the home when it sent this; comes back with the reply.
    pub before: Option<Standing>,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Opens the conversation.
    Hello {
        /// Random per daemon start.
        nonce: DaemonNonce,
        /// The newest standing seen.
        seen: Option<Standing>,
    },
    /// Lists the live images, and this device's leases of any.
    Images,
    /// Asks for an image's commits with their receipts.
    Log(ImageId),
    /// Asks which objects the home lacks.
    Missing(Vec<ObjectId>),
    /// Brings objects.
    Push(Vec<ObjectId>),
    /// Shows what this device has seen to a home that does not have it.
    Prove(Standing),
    /// A mutating call.
    Mutate(RequestId, Box<Call>),
}

/// One reply.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The daemon start that it is for.
    pub process: u64,
    /// The connection.
    pub connection: u64,
    /// The number of the request.
    pub number: u64,
    /// As in the request.
    pub before: Option<Standing>,
    /// Where the home stands; nothing from a home that does not know who asks.
    pub at: Option<Standing>,
    /// The answer.
    pub told: Result<Told, No>,
}

/// A successful answer.
#[derive(Debug, Clone)]
pub enum Told {
    /// To Hello.
    Welcome(Instance),
    /// The live images, in which database.
    Images(Incarnation, Vec<View>),
    /// Commits, oldest first.
    Log(Vec<(Proposal, Receipt)>),
    /// What is absent.
    Missing(Vec<ObjectId>),
    /// Everything that was pushed is durable.
    Durable,
    /// To a proof: whether the home begins anew.
    Heard,
    /// To a mutating call, with the record of the head that it names.
    Done(Answer, Option<Box<(Proposal, Receipt)>>),
}

/// Why there is no answer.
#[derive(Debug, Clone)]
pub enum No {
    /// The home's rules or its log refuse.
    Home(Failure),
    /// These objects of a record are not here.
    Incomplete(Vec<ObjectId>),
    /// The home does not know this connection.
    HelloFirst,
}

/// An image as the home lists it.
#[derive(Debug, Clone)]
pub struct View {
    /// Its rows.
    pub state: ImageState,
    /// The head's record.
    pub head: Option<(Proposal, Receipt)>,
}

impl View {
    /// The lease, if somebody has it.
    pub fn lease(&self) -> Option<&Lease> {
        self.state.lease.as_ref()
    }

    /// The head.
    pub fn head(&self) -> Option<Head> {
        self.state.head
    }
}

impl Ask {
    /// For a trace.
    pub fn word(&self) -> String {
        match self {
            Self::Hello { .. } => "hello".to_owned(),
            Self::Images => "images".to_owned(),
            Self::Log(_) => "log".to_owned(),
            Self::Missing(ids) => format!("missing? {}", ids.len()),
            Self::Push(ids) => format!("push {}", ids.len()),
            Self::Prove(_) => "prove".to_owned(),
            Self::Mutate(_, call) => call_word(call),
        }
    }
}

/// A call for a trace.
pub fn call_word(call: &Call) -> String {
    use crate::ids::short;
    match call {
        Call::CreateImage { name, checkout, .. } => format!(
            "create i{} for c{}",
            short(name.image.as_bytes()),
            short(checkout.as_bytes())
        ),
        Call::Acquire { image, want } => format!(
            "acquire i{} for c{}{}{}",
            short(image.as_bytes()),
            short(want.checkout.as_bytes()),
            want.expect_head.map_or(String::new(), |head| format!(
                " at {}",
                short(head.as_bytes())
            )),
            if want.take_over { " take-over" } else { "" }
        ),
        Call::Renew {
            image,
            checkout,
            token,
            ..
        } => format!(
            "renew i{} c{} e{}",
            short(image.as_bytes()),
            short(checkout.as_bytes()),
            token.epoch
        ),
        Call::Release {
            image,
            checkout,
            token,
        } => format!(
            "release i{} c{} e{}",
            short(image.as_bytes()),
            short(checkout.as_bytes()),
            token.epoch
        ),
        Call::Steal {
            image,
            checkout,
            expect,
            branch,
            ..
        } => format!(
            "steal i{} for c{} seen e{}{}",
            short(image.as_bytes()),
            short(checkout.as_bytes()),
            expect.epoch,
            if branch.is_some() { " to a branch" } else { "" }
        ),
        Call::Commit(proposal) => format!("commit {}", record(proposal)),
        Call::Stage(proposal) => format!("stage {}", record(proposal)),
        Call::Branch { first, .. } => format!("branch {}", record(first)),
        Call::Unstage { checkout, .. } => format!("unstage c{}", short(checkout.as_bytes())),
        Call::Readmit { image, commits } => format!(
            "readmit i{} {} commits",
            short(image.as_bytes()),
            commits.len()
        ),
        Call::DeleteImage { image, force } => {
            format!("delete i{} force={force}", short(image.as_bytes()))
        }
        Call::Pin { commit, .. } => format!("pin {}", short(commit.as_bytes())),
        Call::Unpin { commit, .. } => format!("unpin {}", short(commit.as_bytes())),
        Call::Revoke { .. } => "revoke".to_owned(),
    }
}

fn record(proposal: &Proposal) -> String {
    use crate::ids::short;
    format!(
        "{} of i{} c{} seq {} on {} root {:x} {}",
        short(proposal.commit.as_bytes()),
        short(proposal.image.as_bytes()),
        short(proposal.checkout.as_bytes()),
        proposal.seq,
        proposal.parent.map_or(0, |parent| short(parent.as_bytes())),
        short(proposal.root.as_bytes()),
        proposal
            .token
            .map_or("no token".to_owned(), |token| format!("e{}", token.epoch)),
    )
}
