//! What an answer that is no refusal says has happened, and when it can have.

use img_proto::{Answer, Call, ImageRow, StealExpectation};
use img_records::SignedDescriptor;
use img_types::{CheckoutId, CommitId, ImageId};

use super::super::lines::Tenure;
use super::exchange::Exchange;
use super::{Answers, holds};
use crate::client::NOWHERE;
use crate::journal::Nanos;
use crate::papers::{self, Device};

impl Answers<'_> {
    pub(super) fn accepted(
        &mut self,
        device: &Device,
        exchange: &Exchange<'_>,
        answer: &Answer,
    ) -> Result<(), &'static str> {
        match (&exchange.request.call, answer) {
            (
                call,
                Answer::Granted {
                    token,
                    ttl_ms,
                    head,
                    current,
                    ..
                },
            ) => {
                let head = head.as_deref().map(|head| self.decode(head)).transpose()?;
                let (image, checkout) = granting(call)?;
                holds(
                    checkout.is_none_or(|checkout| checkout == device.checkout(image)),
                    "an answer to somebody else",
                )?;
                let tenure = *self.tenure(image, *token)?;
                self.grant(exchange, image, &tenure)?;
                let line = self.line(image)?;
                if *current {
                    holds(
                        tenure.was_current(exchange.floor, exchange.at),
                        "a grant that was over is told as current",
                    )?;
                    let head = head.map(|(id, _)| id);
                    let told = head.map_or(line.head_at(exchange.floor).is_none(), |head| {
                        line.was_head(head, exchange.floor, exchange.at)
                    });
                    holds(told, "the grant came with another head")?;
                } else {
                    holds(tenure.end <= exchange.at, "a current grant is told as over")?;
                }
                let before = line.head_at(tenure.start);
                match call {
                    Call::Acquire {
                        expect_head: Some(expected),
                        ..
                    } => {
                        holds(
                            before == Some(*expected),
                            "granted over another head than expected",
                        )?;
                    }
                    Call::Steal { expect, .. } => {
                        let StealExpectation { epoch, head, .. } = expect;
                        holds(
                            epoch.0 + 1 == tenure.epoch && before == *head,
                            "stolen in spite of a change",
                        )?;
                    }
                    _ => {}
                }
                self.promise(exchange, image, &tenure, *ttl_ms);
                Ok(())
            }
            (Call::Renew { image, token, .. }, Answer::Renewed { ttl_ms }) => {
                let tenure = *self.tenure(*image, *token)?;
                holds(
                    tenure.device == exchange.device,
                    "renewed for somebody else",
                )?;
                holds(
                    tenure.was_current(exchange.floor, exchange.at),
                    "renewed although not current",
                )?;
                self.promise(exchange, *image, &tenure, *ttl_ms);
                Ok(())
            }
            (Call::Release { image, token, .. }, Answer::Done) => holds(
                self.tenure(*image, *token)?.end <= exchange.at,
                "a released token is still current",
            ),
            (Call::Commit { commit }, Answer::Committed { receipt }) => {
                let (id, _) = self.decode(commit)?;
                self.acknowledged.insert(id);
                let kept = self
                    .receipts
                    .get(&id)
                    .ok_or("an acknowledged commit is not in history")?;
                holds(*kept == receipt[..], "history has another receipt")?;
                self.moved(exchange, id, commit)
            }
            (Call::Images { .. }, Answer::Images { images, .. }) => {
                images.iter().try_for_each(|row| self.listed(exchange, row))
            }
            (Call::Log { image, .. }, Answer::Log { commits, .. }) => {
                for (commit, receipt) in commits {
                    let (id, _) = self.decode(commit)?;
                    holds(
                        self.receipts
                            .get(&id)
                            .is_some_and(|kept| *kept == receipt[..]),
                        "a commit left history",
                    )?;
                }
                let newest = commits
                    .first()
                    .map(|(commit, _)| self.decode(commit))
                    .transpose()?;
                let line = self.line(*image)?;
                holds(
                    newest.is_some_and(|(id, _)| line.was_head(id, exchange.floor, u64::MAX)),
                    "an old history",
                )
                .or_else(|why| {
                    if matches!(
                        exchange.request.call,
                        Call::Log {
                            before: Some(_),
                            ..
                        }
                    ) {
                        Ok(())
                    } else {
                        Err(why)
                    }
                })
            }
            (Call::Unstage { image, .. }, Answer::Done) if *image == papers::image(NOWHERE) => {
                let kept = exchange
                    .request
                    .id
                    .is_some_and(|id| self.kept.contains(&id));
                holds(!kept, "one request id was taken for two things")
            }
            (
                Call::Stage { .. } | Call::Unstage { .. } | Call::RosterAppend { .. },
                Answer::Done,
            )
            | (Call::OpenUpload { .. }, Answer::Upload { .. })
            | (Call::Push { .. }, Answer::Pushed { objects: 1, .. }) => Ok(()),
            _ => Err("an answer to something else"),
        }
    }

    /// A token is granted by one request, and a request grants one token.
    fn grant(
        &mut self,
        exchange: &Exchange<'_>,
        image: ImageId,
        tenure: &Tenure,
    ) -> Result<(), &'static str> {
        let id = exchange.request.id.ok_or("a grant without a request id")?;
        let place = (image, tenure.epoch);
        holds(
            tenure.device == exchange.device,
            "the token is another device's",
        )?;
        holds(
            *self.granted.entry(place).or_insert(id) == id,
            "a token was granted twice",
        )?;
        holds(
            *self.grants.entry(id).or_insert(place) == place,
            "two tokens for one request",
        )?;
        holds(
            tenure.start > exchange.first_floor,
            "granted before it was asked for",
        )?;
        holds(tenure.start <= exchange.at, "granted after it was answered")
    }

    /// Whether a renewal or commit was taken that was sent after its lease had lapsed. A lease that was
    /// written before the home's last start does not lapse for a while.
    pub(super) fn late(&self, exchange: &Exchange<'_>, home_killed: &[Nanos]) -> bool {
        let (image, token) = match &exchange.request.call {
            Call::Renew { image, token, .. } => (*image, Some(*token)),
            Call::Commit { commit } => match self.decode(commit) {
                Ok((_, record)) => (record.image, record.token),
                Err(_) => return false,
            },
            _ => return false,
        };
        let told = token.and_then(|token| self.last_told.get(&(image, token.epoch.0)));
        exchange.reply.result.is_ok()
            && told.is_some_and(|(told, until)| {
                let killed = |at: &Nanos| (*told..exchange.sent).contains(at);
                *until < exchange.sent && !home_killed.iter().any(killed)
            })
    }

    fn promise(&mut self, exchange: &Exchange<'_>, image: ImageId, tenure: &Tenure, ttl_ms: u64) {
        let until = exchange
            .sent
            .saturating_add(ttl_ms.saturating_mul(1_000_000));
        let promised = self.promised.entry((image, tenure.epoch)).or_default();
        *promised = (*promised).max(until);
        let until = until + exchange.heard.saturating_sub(exchange.sent);
        self.last_told
            .insert((image, tenure.epoch), (exchange.sent, until));
    }

    /// A commit moved the head while its token was current, between request and answer.
    fn moved(
        &self,
        exchange: &Exchange<'_>,
        id: CommitId,
        commit: &[u8],
    ) -> Result<(), &'static str> {
        let (_, record) = self.decode(commit)?;
        let line = self.line(record.image)?;
        let mut heads = line.heads.iter().filter(|(_, head)| *head == id);
        let (Some((position, _)), None) = (heads.next(), heads.next()) else {
            return Err("the log does not have the commit once");
        };
        holds(
            *position > exchange.first_floor,
            "committed before it was sent",
        )?;
        holds(*position <= exchange.at, "committed after it was answered")?;
        let tenure = self.tenure(record.image, record.token.ok_or("no token")?)?;
        let (device, checkout) = (record.device, record.checkout);
        holds(
            (tenure.device, tenure.checkout) == (device, checkout),
            "committed under another's token",
        )?;
        holds(
            tenure.start < *position && *position < tenure.end,
            "committed although not current",
        )
    }

    fn listed(&self, exchange: &Exchange<'_>, row: &ImageRow) -> Result<(), &'static str> {
        let line = self.line(row.image)?;
        holds(
            row.epoch.0 >= line.epoch_at(exchange.floor),
            "an old epoch is listed",
        )?;
        let head = row
            .head
            .as_deref()
            .ok_or("an image without a commit is listed")?;
        let (head, _) = self.decode(head)?;
        holds(
            line.was_head(head, exchange.floor, u64::MAX),
            "an old head is listed",
        )?;
        let Some(lease) = &row.lease else {
            return Ok(());
        };
        let tenure = line
            .tenure(lease.epoch.0)
            .ok_or("an unknown holder is listed")?;
        holds(
            lease.epoch == row.epoch,
            "a holder of another epoch is listed",
        )?;
        holds(
            tenure.checkout == lease.checkout && tenure.end > exchange.floor,
            "an old holder is listed",
        )
    }
}

/// The image that a call asks for, and for which checkout.
fn granting(call: &Call) -> Result<(ImageId, Option<CheckoutId>), &'static str> {
    match call {
        Call::Acquire {
            image, checkout, ..
        }
        | Call::Steal {
            image, checkout, ..
        } => Ok((*image, Some(*checkout))),
        Call::CreateImage { descriptor, .. } => {
            let signed = SignedDescriptor::decode(descriptor);
            Ok((
                signed
                    .map_err(|_| "a descriptor does not decode")?
                    .record
                    .image,
                None,
            ))
        }
        _ => Err("a grant that nobody asked for"),
    }
}
