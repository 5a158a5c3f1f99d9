//! Whether there was a reason for a refusal.

use img_proto::{Call, LeaseRow, Refusal};
use img_types::{ImageId, Token};

use super::exchange::Exchange;
use super::{Answers, holds, is_reuse};
use crate::papers::Device;

impl Answers<'_> {
    pub(super) fn refused(
        &self,
        device: &Device,
        exchange: &Exchange<'_>,
        refusal: &Refusal,
    ) -> Result<(), &'static str> {
        let (floor, at) = (exchange.floor, exchange.at);
        match (&exchange.request.call, refusal) {
            (Call::Acquire { image, .. }, Refusal::Leased(row)) => {
                self.holder(exchange, *image, row)
            }
            (Call::Acquire { image, take_over: false, .. }, Refusal::StagedWork { lease, .. }) => {
                holds(lease.checkout != device.checkout(*image), "held up by its own work")?;
                self.holder(exchange, *image, lease)
            }
            (Call::Acquire { image, expect_head: Some(expected), .. }, Refusal::HeadMoved { head }) => {
                holds(*head != Some(*expected), "the head is the expected one")?;
                holds(head.is_some_and(|head| self.lines[image].was_head(head, floor, at)), "a head that never was")
            }
            (Call::Renew { image, token, .. }, Refusal::TokenStale { epoch, .. }) => {
                self.stale(exchange, *image, *token, epoch.0)
            }
            (Call::Commit { commit }, Refusal::TokenStale { epoch, .. }) => {
                let (_, record) = self.decode(commit)?;
                self.stale(exchange, record.image, record.token.ok_or("no token")?, epoch.0)
            }
            (Call::Commit { commit }, Refusal::HeadMoved { head }) => {
                let (_, record) = self.decode(commit)?;
                holds(*head != record.parent.map(|parent| parent.commit), "the head is the parent")?;
                holds(head.is_some_and(|head| self.lines[&record.image].was_head(head, floor, at)), "a head that never was")
            }
            (Call::Steal { image, .. }, Refusal::NobodyHolds) => {
                holds(!self.line(*image)?.held_throughout(floor, at), "somebody held it all the time")
            }
            (Call::Steal { .. }, Refusal::Changed)
            | (Call::Stage { .. }, Refusal::OverLimit(_))
            // Another life of this client has ended the session.
            | (Call::Push { .. }, Refusal::SessionClosed) => Ok(()),
            (_, Refusal::RequestReused) => {
                // Another life may have used the id of a refused request that this one repeats.
                let id = exchange.request.id;
                let reused = id.is_some_and(|id| self.reused.contains(&id));
                holds(reused || is_reuse(exchange.request), "a new request id is called used")
            }
            _ => Err("a refusal without a reason"),
        }
    }

    fn holder(
        &self,
        exchange: &Exchange<'_>,
        image: ImageId,
        row: &LeaseRow,
    ) -> Result<(), &'static str> {
        let tenure = self
            .line(image)?
            .tenure(row.epoch.0)
            .ok_or("an unknown holder")?;
        holds(
            (tenure.device, tenure.checkout) == (row.device, row.checkout),
            "another holder than the log's",
        )?;
        holds(
            tenure.was_current(exchange.floor, exchange.at),
            "the holder had lost it",
        )
    }

    fn stale(
        &self,
        exchange: &Exchange<'_>,
        image: ImageId,
        token: Token,
        epoch: u64,
    ) -> Result<(), &'static str> {
        let line = self.line(image)?;
        let known = line.epoch_at(exchange.floor)..=line.epoch_at(exchange.at);
        holds(known.contains(&epoch), "an epoch that was not the image's")?;
        let tenure = self.tenure(image, token)?;
        holds(
            tenure.end <= exchange.at || tenure.device != exchange.device,
            "a current token is called stale",
        )
    }
}
