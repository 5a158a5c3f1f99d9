//! The last step: a signed record, its delivery, and the home's receipt for it.

use std::time::Duration;

use img_proto::{Answer, Call};
use img_records::{Commit, CommitKind, CommitPrivate, Maps, Parent, Seen, SignedReceipt};
use img_seal::Reference;
use img_types::{CheckoutId, ImageId, Instance, RequestId, Seq, Token, WallMillis};
use tokio::time::sleep;

use crate::commits::{OpenCommit, RecordError};
use crate::events::{self, Reporter};
use crate::home::{CallError, Home};

/// What a commit says.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The image whose head it is to become.
    pub image: ImageId,
    /// The checkout that it is made in.
    pub checkout: CheckoutId,
    /// The lease that it is made under.
    pub token: Token,
    /// The commit that it follows; nothing for an image's first.
    pub base: Option<OpenCommit>,
    /// Its index.
    pub root: Reference,
    /// What a person said about it.
    pub message: String,
    /// How it came about.
    pub kind: CommitKind,
    /// What it holds of shared memory maps.
    pub maps: Maps,
    /// Bytes of all files.
    pub logical_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Bytes that were sealed for it.
    pub sealed_bytes: u64,
}

impl Draft {
    /// Signs it with this device's key, sealed under the newest keys that it knows.
    ///
    /// # Errors
    /// The base's number is the last, or the newest key epoch is not known here.
    pub fn sign(&self, home: &Home) -> Result<OpenCommit, RecordError> {
        let base = self.base.as_ref();
        let seq = match base {
            Some(base) => base.record().seq.next().ok_or(RecordError::Misplaced)?,
            None => Seq(0),
        };
        // Strictly increasing within a checkout, whatever the wall clock does.
        let after_base = base.map_or(i64::MIN, |base| base.record().clock.0.saturating_add(1));
        let clock = WallMillis(events::now().0.max(after_base));
        let private = CommitPrivate {
            root_key: *self.root.key.as_bytes(),
            root_len: self.root.len,
            message: self.message.clone(),
            kind: self.kind,
            maps: self.maps,
            logical_bytes: self.logical_bytes,
            files: self.files,
            sealed_bytes: self.sealed_bytes,
            manifest: Vec::new(),
        };
        home.trusted(|trust| {
            let record = Commit {
                image: self.image,
                seq,
                parent: base.map(|base| Parent {
                    image: self.image,
                    commit: base.id,
                }),
                root: self.root.id,
                token: Some(self.token),
                checkout: self.checkout,
                device: home.device(),
                instance: home.instance().unwrap_or(Instance(0)),
                roster: trust.roster.head(),
                key_epoch: trust.keys.newest(),
                clock,
                seen: home.seen().map(|seen| Seen {
                    incarnation: seen.incarnation,
                    position: seen.position,
                    root: seen.root,
                }),
                sealed: Vec::new(),
            };
            trust.sign_commit(home.identity(), record, &private)
        })
    }
}

/// Sends a commit until it is answered, and checks the receipt. The caller has written the record down: it
/// is the same request whenever it is sent, because its request id is its commit id.
///
/// # Errors
/// Every [`CallError`] but [`CallError::Away`], which is waited out.
pub async fn deliver(
    home: &Home,
    commit: &OpenCommit,
    reporter: &Reporter,
) -> Result<SignedReceipt, CallError> {
    let request = RequestId::from_bytes(*commit.id.as_bytes());
    let record = bytes::Bytes::from(commit.signed.to_bytes());
    loop {
        let call = Call::Commit {
            commit: record.clone(),
        };
        match home.repeat(request, call).await {
            Ok(Answer::Committed { receipt }) => return check(home, commit, &receipt),
            Ok(_) => return Err(CallError::Protocol("no receipt")),
            // A home that went back in time is waited for like one that is away: a person says how to go on.
            Err(CallError::Away | CallError::WentBack) => {}
            Err(error) => return Err(error),
        }
        reporter.waits_for(Some("the home"));
        sleep(PAUSE).await;
        home.reachable().await;
        reporter.waits_for(None);
    }
}

/// Checks that the home's key signed for exactly this commit.
fn check(home: &Home, commit: &OpenCommit, receipt: &[u8]) -> Result<SignedReceipt, CallError> {
    let bad = CallError::Protocol("a receipt that does not verify");
    let Ok(signed) = SignedReceipt::decode(receipt) else {
        return Err(bad);
    };
    let Some(key) = home.home_key() else {
        return Err(bad);
    };
    let record = &signed.record;
    let fits = signed.verify(&home.id(), key.as_bytes()).is_ok()
        && record.commit == commit.id
        && record.image == commit.record().image
        && record.seq == commit.record().seq;
    if fits { Ok(signed) } else { Err(bad) }
}

/// Pause before a commit without an answer is sent again.
const PAUSE: Duration = Duration::from_millis(250);
