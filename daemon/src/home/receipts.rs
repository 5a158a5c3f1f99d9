//! Which answers come with the home's signature for a commit, so that each is kept before anybody acts on it.

use bytes::Bytes;
use img_proto::{Answer, Call};
use img_records::{SignedCommit, SignedReceipt, commit_id};
use img_types::{HomeId, HomeKey};

use crate::state::Acknowledged;

/// The commits that an answer acknowledges, oldest first. What does not verify is left out: whoever asked
/// checks it again, and refuses the answer.
pub(super) fn acknowledged(
    home: &HomeId,
    key: &HomeKey,
    call: &Call,
    answer: &Answer,
) -> Vec<Acknowledged> {
    let open = |(record, receipt)| acknowledge(home, key, record, receipt);
    match (call, answer) {
        (Call::Commit { commit }, Answer::Committed { receipt })
        | (Call::Branch { commit, .. }, Answer::Branched { receipt, .. }) => {
            open((commit, receipt)).into_iter().collect()
        }
        (Call::Log { .. }, Answer::Log { commits, .. }) => {
            let oldest_first = commits.iter().rev();
            let pairs = oldest_first.map(|(record, receipt)| (record, receipt));
            pairs.filter_map(open).collect()
        }
        _ => Vec::new(),
    }
}

fn acknowledge(
    home: &HomeId,
    key: &HomeKey,
    record: &Bytes,
    receipt: &Bytes,
) -> Option<Acknowledged> {
    let commit = SignedCommit::decode(record).ok()?;
    let signed = SignedReceipt::decode(receipt).ok()?;
    signed.verify(home, key.as_bytes()).ok()?;
    let told = &signed.record;
    let fits = told.commit == commit_id(&commit, home)
        && told.image == commit.record.image
        && told.seq == commit.record.seq;
    fits.then(|| Acknowledged {
        commit: told.commit,
        image: told.image,
        seq: told.seq,
        record: record.to_vec(),
        receipt: receipt.to_vec(),
        incarnation: told.incarnation,
        position: told.position,
    })
}
