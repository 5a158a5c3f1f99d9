//! What a device asks of its home.

use bytes::Bytes;
use img_types::{
    CheckoutId, CommitId, DaemonNonce, DeviceId, Epoch, ImageId, InviteId, LeaseMode, LogPosition,
    ObjectId, RequestId, Seq, Token, UploadId,
};
use serde::{Deserialize, Serialize};

use crate::{Class, Standing};

/// One call, on a bidirectional stream of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Present on every mutating call: the same id with the same content has no second effect.
    pub id: Option<RequestId>,
    /// What is asked.
    pub call: Call,
}

/// How long and in which manner a lease is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTerms {
    /// Milliseconds from the grant to the lapse.
    pub ttl_ms: u64,
    /// Online or offline.
    pub mode: LeaseMode,
}

/// What a thief saw before it stole; the steal is refused if any of it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StealExpectation {
    /// The image's epoch.
    pub epoch: Epoch,
    /// The image's head.
    pub head: Option<CommitId>,
    /// The loser's staged commit.
    pub staged: Option<CommitId>,
}

/// Every call of the protocol. Records (`Bytes`) are signed records as `img-records` encodes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Opens the conversation of a member: registers the daemon and checks the home's log.
    Hello {
        /// Random per daemon start.
        nonce: DaemonNonce,
        /// The newest standing that this device has seen of this home.
        seen: Option<Standing>,
    },

    // The only calls without membership.
    /// Founds the home.
    Found {
        /// The founding invite's secret.
        secret: [u8; 16],
        /// The signed genesis entry.
        genesis: Bytes,
    },
    /// Asks to join; answered when the inviter's daemon has answered, or asked again later.
    JoinRequest {
        /// Which invite.
        invite: InviteId,
        /// The join record: keys, sealed name, proof.
        request: Bytes,
    },
    /// Asks whether the join has been answered.
    JoinPoll {
        /// Which invite.
        invite: InviteId,
    },
    /// Asks for the roster, as the holder of the recovery words.
    RecoverRoster {
        /// Signature of the recovery key over the TLS exporter.
        proof: Bytes,
    },
    /// Adds a device and replaces the recovery keys.
    RecoverAppend {
        /// Signature of the recovery key over the TLS exporter.
        proof: Bytes,
        /// The signed roster entry.
        entry: Bytes,
    },

    /// Asks for roster entries from a sequence number on.
    Roster {
        /// First entry wanted.
        from: u64,
    },
    /// Appends an entry to the roster, if its predecessor is the newest one.
    RosterAppend {
        /// The signed entry.
        entry: Bytes,
    },
    /// Announces an invite, so that the home relays requests under it.
    RegisterInvite {
        /// The invite's id.
        invite: InviteId,
        /// Milliseconds until the home forgets it.
        ttl_ms: u64,
    },
    /// Asks for the joins that wait for this device's answer.
    PendingJoins,
    /// Answers a join.
    AnswerJoin {
        /// Which invite.
        invite: InviteId,
        /// The answer record, or nothing to turn it down and burn the invite.
        answer: Option<Bytes>,
    },

    /// Lists the live images in the order of their ids, one page after the other.
    Images {
        /// Begin behind this image, or at the first one.
        after: Option<ImageId>,
    },
    /// Makes an image without a commit and grants its first lease to the caller.
    CreateImage {
        /// The signed descriptor.
        descriptor: Bytes,
        /// The importing checkout.
        checkout: CheckoutId,
        /// Terms of the lease.
        terms: LeaseTerms,
    },
    /// Replaces an image's descriptor (a rename), if its predecessor is the newest one.
    SetDescriptor {
        /// The signed descriptor.
        descriptor: Bytes,
    },
    /// Deletes an image.
    DeleteImage {
        /// Which.
        image: ImageId,
        /// Also under another's lease.
        force: bool,
    },

    /// Asks for the image's lease.
    Acquire {
        /// Which image.
        image: ImageId,
        /// For which checkout.
        checkout: CheckoutId,
        /// Terms of the lease.
        terms: LeaseTerms,
        /// Grant only while the head is this commit.
        expect_head: Option<CommitId>,
        /// Grant also over a lapsed lease with newer staged work.
        take_over: bool,
    },
    /// Asks for a new deadline under the same token.
    Renew {
        /// Which image.
        image: ImageId,
        /// For which checkout.
        checkout: CheckoutId,
        /// The token held.
        token: Token,
        /// New terms, or as before.
        terms: Option<LeaseTerms>,
    },
    /// Gives the lease back.
    Release {
        /// Which image.
        image: ImageId,
        /// For which checkout.
        checkout: CheckoutId,
        /// The token held.
        token: Token,
    },
    /// Takes the lease over by force.
    Steal {
        /// Which image.
        image: ImageId,
        /// For which checkout.
        checkout: CheckoutId,
        /// Terms of the lease.
        terms: LeaseTerms,
        /// What the thief saw.
        expect: StealExpectation,
        /// Sealed reason.
        reason: Bytes,
        /// The branch that keeps the loser's work: descriptor and first commit.
        branch: Option<(Bytes, Bytes)>,
    },
    /// Asks to be told when an image of this device's checkouts changes, after a log position.
    Watch {
        /// What the device has seen.
        after: LogPosition,
    },
    /// Keeps a commit alive for a read-only checkout.
    Pin {
        /// The commit.
        commit: CommitId,
        /// The checkout that reads it.
        checkout: CheckoutId,
    },
    /// Ends a pin.
    Unpin {
        /// The commit.
        commit: CommitId,
        /// The checkout that read it.
        checkout: CheckoutId,
    },

    /// Asks for objects; object frames follow the answer in the order asked.
    Fetch {
        /// Which.
        ids: Vec<ObjectId>,
        /// How urgent.
        class: Class,
    },
    /// Asks for the nodes below a root, breadth first; object frames follow the answer.
    Expand {
        /// The root whose descendants are wanted.
        root: ObjectId,
        /// A root whose descendants the device has.
        minus: Option<ObjectId>,
        /// Whether only the left edge of every level is wanted: the metadata of an image.
        left_edge: bool,
        /// Most bytes to send.
        budget: u64,
    },
    /// Opens or resumes the upload session of a checkout.
    OpenUpload {
        /// Which checkout.
        checkout: CheckoutId,
    },
    /// Asks which of these objects the home lacks or has not complete.
    Missing {
        /// The session.
        upload: UploadId,
        /// Candidates.
        ids: Vec<ObjectId>,
    },
    /// Sends objects: upload frames follow the request, acknowledgements come as replies.
    Push {
        /// The session.
        upload: UploadId,
    },
    /// Ends an upload session without a commit.
    CloseUpload {
        /// The session.
        upload: UploadId,
    },

    /// Keeps a streamed checkpoint beside the head.
    Stage {
        /// The signed commit record.
        commit: Bytes,
    },
    /// Drops this checkout's staged record.
    Unstage {
        /// Which image.
        image: ImageId,
        /// Whose.
        checkout: CheckoutId,
    },
    /// Moves the head.
    Commit {
        /// The signed commit record.
        commit: Bytes,
    },
    /// Makes a new image that starts from a commit.
    Branch {
        /// The new image's signed descriptor.
        descriptor: Bytes,
        /// Its signed first commit.
        commit: Bytes,
        /// Terms of its lease.
        terms: LeaseTerms,
    },
    /// Gives commits back to a home that went back in time.
    Readmit {
        /// Which image.
        image: ImageId,
        /// Its signed descriptor, for a home that does not know the image any more.
        descriptor: Option<Bytes>,
        /// Signed commits with the receipts for them, oldest first.
        commits: Vec<(Bytes, Bytes)>,
    },
    /// Sets an image's trace.
    SetTrace {
        /// Which image.
        image: ImageId,
        /// The trace object.
        trace: ObjectId,
    },
    /// Asks for an image's commits, newest first, with their receipts.
    Log {
        /// Which image.
        image: ImageId,
        /// Start below this commit number, or at the head.
        before: Option<Seq>,
        /// Most commits wanted.
        limit: u32,
    },
    /// Asks for a proof that the home holds what a commit's root names.
    Prove {
        /// Which commit.
        commit: CommitId,
        /// Chooses the path.
        seed: [u8; 32],
    },
    /// Asks for the home's figures or steers it; admins only.
    Admin {
        /// What is asked.
        command: AdminCommand,
    },
    /// Lists the images that have a lease, in the order of their ids, one page after the other.
    Leases {
        /// Only this device's, or everybody's.
        device: Option<DeviceId>,
        /// Begin behind this image, or at the first one.
        after: Option<ImageId>,
    },
    /// Shows a member's home a receipt of its own. If it is of the home's present incarnation and its log
    /// does not have it, the home was restored without anybody saying so, and begins a new incarnation.
    ShowReceipt {
        /// The signed receipt.
        receipt: Bytes,
    },
    /// Asks who took an image from a checkout by force, and why.
    StolenBy {
        /// Which image.
        image: ImageId,
        /// The checkout that had its lease.
        checkout: CheckoutId,
    },
}

/// What an admin asks of the home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminCommand {
    /// Figures of the object store and the database.
    Usage,
    /// What was refused or taken by force, newest first.
    Audit {
        /// Start below this number, or at the newest.
        before: Option<u64>,
        /// Most entries wanted.
        limit: u32,
    },
    /// An image's entries of the home's log, newest first: who had its lease, and what moved its head.
    History {
        /// Which image; also one that is deleted.
        image: ImageId,
        /// Start below this position, or at the end.
        before: Option<LogPosition>,
        /// Most entries wanted.
        limit: u32,
    },
}

impl Call {
    /// Whether the call changes what the home keeps, so that it needs a request id.
    pub fn mutates(&self) -> bool {
        matches!(
            self,
            Self::RosterAppend { .. }
                | Self::RegisterInvite { .. }
                | Self::AnswerJoin { .. }
                | Self::CreateImage { .. }
                | Self::SetDescriptor { .. }
                | Self::DeleteImage { .. }
                | Self::Acquire { .. }
                | Self::Renew { .. }
                | Self::Release { .. }
                | Self::Steal { .. }
                | Self::Pin { .. }
                | Self::Unpin { .. }
                | Self::Stage { .. }
                | Self::Unstage { .. }
                | Self::Commit { .. }
                | Self::Branch { .. }
                | Self::Readmit { .. }
                | Self::SetTrace { .. }
        )
    }
}
