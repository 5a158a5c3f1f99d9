//! A home that lacks what this device saw of it: what it lost, image by image.
//!
//! Such a home is looked at over a connection of its own ([`Visit`]), while everybody else's calls are refused
//! here. Looking changes one thing there: a receipt that its log does not have, of its present incarnation or of one
//! that it does not know, proves that its database was put back, and it begins a new one (`docs/protocol.md`).

use std::sync::{Mutex, PoisonError};

use img_net::Connection;
use img_proto::{Answer, Call, Class, ImageRow, Refusal, Request, Standing};
use img_records::{SignedCommit, commit_id};
use img_types::{CommitId, ImageId, RequestId, Seq};
use serde_json::{Value, json};

use super::CallError;
use super::greeting::Core;
use crate::error::{self, ApiError};
use crate::random::random;

/// What a home lost that went back in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackInTime {
    /// By image; nothing where only leases and the like are gone.
    pub losses: Vec<Loss>,
}

/// An image that lost commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Which.
    pub image: ImageId,
    /// Its name.
    pub name: String,
    /// The newest commit that this device knows of.
    pub from: Place,
    /// What the home has; nothing if it does not know the image any more.
    pub to: Option<Place>,
}

/// A commit of an image's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub seq: Seq,
    /// Its id.
    pub commit: CommitId,
}

impl BackInTime {
    /// The error for a person.
    pub fn explain(&self) -> ApiError {
        let what = if self.losses.is_empty() {
            "No commit that this device knows of is lost, but leases and other changes are"
                .to_owned()
        } else {
            let sentences: Vec<_> = self.losses.iter().map(Loss::sentence).collect();
            sentences.join("; ")
        };
        let images: Vec<_> = self.losses.iter().map(Loss::to_json).collect();
        error::went_back(&what).with("images", images)
    }
}

impl Loss {
    /// What happened to the image.
    pub fn sentence(&self) -> String {
        let from = self.from.words();
        match &self.to {
            Some(to) => format!("{} went back from {from} to {}", self.name, to.words()),
            None => format!("{} with its newest {from} is gone", self.name),
        }
    }

    /// The image with both places.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "image": self.image,
            "from": self.from.to_json(),
            "to": self.to.map(|to| to.to_json()),
        })
    }
}

impl Place {
    /// It for a person.
    pub(super) fn words(&self) -> String {
        format!("commit {} ({})", self.seq, self.commit.short())
    }

    fn to_json(self) -> Value {
        json!({ "seq": self.seq, "commit": self.commit })
    }
}

/// A conversation with a home that went back in time.
pub(super) struct Visit<'a> {
    core: &'a Core,
    connection: &'a Connection,
    at: Mutex<Option<Standing>>,
}

impl<'a> Visit<'a> {
    /// Begins it: proves to the home that it went back, where this device can, and says Hello without what was
    /// seen before.
    pub(super) async fn begin(
        core: &'a Core,
        connection: &'a Connection,
    ) -> Result<Self, CallError> {
        let visit = Self {
            core,
            connection,
            at: Mutex::new(None),
        };
        visit.hello().await?;
        // It may have gone back to before its present incarnation, too.
        let receipts = core.state.with(|db| db.farthest_receipts()).await?;
        let shows = !receipts.is_empty();
        for receipt in receipts {
            let receipt = receipt.into();
            visit.ask(Call::ShowReceipt { receipt }).await?;
        }
        if shows {
            // The answer comes with the standing of before.
            visit.hello().await?;
        }
        Ok(visit)
    }

    async fn hello(&self) -> Result<(), CallError> {
        let hello = Call::Hello {
            nonce: self.core.nonce,
            seen: None,
        };
        match self.ask(hello).await? {
            Answer::Hello { .. } => Ok(()),
            _ => Err(CallError::Protocol("no answer to Hello")),
        }
    }

    /// Where the home stands.
    pub(super) fn at(&self) -> Option<Standing> {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn ask(&self, call: Call) -> Result<Answer, CallError> {
        self.send(Request { id: None, call }).await
    }

    /// Makes a call that changes the home. It is not journaled: a person repeats what it is a part of.
    pub(super) async fn mutate(&self, call: Call) -> Result<Answer, CallError> {
        let id = Some(RequestId::from_bytes(random()));
        self.send(Request { id, call }).await
    }

    async fn send(&self, request: Request) -> Result<Answer, CallError> {
        let mut busy = 0;
        loop {
            let reply = self.connection.call(&request, Class::Control).await?;
            if let Some(at) = reply.at {
                *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
            }
            match reply.result {
                Err(Refusal::Busy) if busy < super::BUSY_MAX => {
                    busy += 1;
                    tokio::time::sleep(super::BUSY_PAUSE * busy).await;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    /// The images that the home has.
    pub(super) async fn images(&self) -> Result<Vec<ImageRow>, CallError> {
        let mut rows: Vec<ImageRow> = Vec::new();
        loop {
            let after = rows.last().map(|row| row.image);
            let Answer::Images { images, more } = self.ask(Call::Images { after }).await? else {
                return Err(CallError::Protocol("no list of images"));
            };
            let onward = images.first().is_some_and(|row| Some(row.image) > after);
            rows.extend(images);
            if !more {
                return Ok(rows);
            }
            if !onward {
                return Err(CallError::Protocol("no end of the list of images"));
            }
        }
    }

    /// What this device knows of and the home, whose images are `rows`, does not have.
    pub(super) async fn losses(&self, rows: &[ImageRow]) -> Result<Vec<Loss>, CallError> {
        let (listed, signed) = self
            .core
            .state
            .with(|db| Ok((db.images()?, db.newest_acknowledged()?)))
            .await?;
        let mut known: std::collections::BTreeMap<ImageId, Place> = signed
            .into_iter()
            .map(|(image, seq, commit)| (image, Place { seq, commit }))
            .collect();
        for row in &listed {
            if let Some(head) = self.head(row) {
                let newest = known.entry(row.image).or_insert(head);
                if newest.seq < head.seq {
                    *newest = head;
                }
            }
        }
        let mut losses = Vec::new();
        for (image, from) in known {
            let here = rows.iter().find(|row| row.image == image);
            let to = here.and_then(|row| self.head(row));
            if let Some(to) = to
                && self.contains(image, to, from).await?
            {
                continue;
            }
            let row = here.or_else(|| listed.iter().find(|row| row.image == image));
            losses.push(Loss {
                image,
                name: row.map_or_else(|| image.short().to_string(), |row| self.name(row)),
                from,
                to,
            });
        }
        Ok(losses)
    }

    /// Whether the history that ends with `head` has a commit.
    async fn contains(
        &self,
        image: ImageId,
        head: Place,
        commit: Place,
    ) -> Result<bool, CallError> {
        if head.seq <= commit.seq {
            return Ok(head == commit);
        }
        let log = Call::Log {
            image,
            before: commit.seq.next(),
            limit: 1,
        };
        let Answer::Log { commits, .. } = self.ask(log).await? else {
            return Err(CallError::Protocol("no history"));
        };
        let found = commits.first().and_then(|(record, _)| self.place(record));
        Ok(found == Some(commit))
    }

    /// An image's head as its row has it.
    pub(super) fn head(&self, row: &ImageRow) -> Option<Place> {
        self.place(row.head.as_ref()?)
    }

    fn place(&self, record: &[u8]) -> Option<Place> {
        let signed = SignedCommit::decode(record).ok()?;
        Some(Place {
            seq: signed.record.seq,
            commit: commit_id(&signed, &self.core.pin().home),
        })
    }

    fn name(&self, row: &ImageRow) -> String {
        let opened = self
            .core
            .trusted(|trust| trust.open_descriptor(row.image, &row.descriptor));
        match opened {
            Ok(descriptor) => descriptor.name.to_string(),
            Err(_) => row.image.short().to_string(),
        }
    }
}
