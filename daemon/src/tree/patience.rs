//! How long an operation waits for what is absent.
//!
//! The kernel reads ahead; when that fails it reads the page that was wanted once more, by itself. Whoever reads
//! would wait twice for a home that is away. So what was waited for in vain a moment ago is waited for only shortly,
//! once: whoever asks again after that is patient anew, however slow the way to a home that came back is.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use img_seal::Reference;
use img_types::limits::DEMAND_TIMEOUT;
use tokio::time::Instant;

use super::source::Wanted;

/// What was waited for in vain a moment ago.
#[derive(Debug, Default)]
pub(super) struct Patience(Mutex<BTreeMap<Reference, Instant>>);

impl Patience {
    /// How long to wait for what an operation wants first.
    pub(super) fn for_first(&self, wanted: &Wanted) -> Duration {
        let mut in_vain = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.retain(|_, since| since.elapsed() < AGAIN_WITHIN);
        let objects = wanted.nodes.iter().chain(&wanted.blocks);
        // All of them are taken out: the next one who asks is no echo.
        let known = objects.filter(|object| in_vain.remove(object).is_some());
        match known.count() {
            0 => DEMAND_TIMEOUT,
            _ => AGAIN,
        }
    }

    /// Notes what was waited for in vain for as long as it could be.
    pub(super) fn was_in_vain(&self, wanted: &Wanted, waited: Duration) {
        if waited < DEMAND_TIMEOUT {
            return;
        }
        let mut in_vain = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.retain(|_, since| since.elapsed() < AGAIN_WITHIN);
        let objects = wanted.nodes.iter().chain(&wanted.blocks);
        in_vain.extend(objects.map(|object| (*object, Instant::now())));
    }
}

/// How long after a failure the kernel asks again by itself, at most.
const AGAIN_WITHIN: Duration = Duration::from_secs(1);
/// How long that is waited for.
const AGAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use img_seal::BlockKey;
    use img_types::ObjectId;

    use super::*;

    fn wanted(blocks: &[u8]) -> Wanted {
        let reference = |byte: &u8| Reference {
            id: ObjectId::from_bytes([*byte; 32]),
            key: BlockKey::from_bytes([0; 32]),
            len: 1,
        };
        Wanted {
            blocks: blocks.iter().map(reference).collect(),
            ..Wanted::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_asks_for_once_more_is_not_waited_for_twice() {
        let patience = Patience::default();
        let (ahead, page) = (wanted(&[1, 2]), wanted(&[1]));
        assert_eq!(patience.for_first(&ahead), DEMAND_TIMEOUT);
        patience.was_in_vain(&ahead, DEMAND_TIMEOUT);
        assert_eq!(patience.for_first(&wanted(&[3])), DEMAND_TIMEOUT);
        assert_eq!(patience.for_first(&page), AGAIN);
        // A program that goes on asking is waited with again.
        patience.was_in_vain(&page, AGAIN);
        assert_eq!(patience.for_first(&page), DEMAND_TIMEOUT);
        patience.was_in_vain(&page, DEMAND_TIMEOUT);
        tokio::time::advance(AGAIN_WITHIN).await;
        assert_eq!(patience.for_first(&page), DEMAND_TIMEOUT);
    }
}
