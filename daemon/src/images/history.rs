//! The history of an image, and what a person writes for one of its commits.

use img_proto::{Answer, Call};
use img_records::SignedReceipt;
use img_types::limits::RECORDS_PER_REPLY_MAX;
use img_types::{CommitId, LogPosition, Seq};

use super::{Image, Images, unverified};
use crate::commits::{OpenCommit, RecordError};
use crate::error::ApiError;
use crate::home::CallError;

/// How a person names a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitSpec {
    /// `head`, or `head~2` for the second before it.
    Head {
        /// How many before the head.
        before: u64,
    },
    /// A full id or the beginning of one, in lower-case hexadecimal digits.
    Prefix(String),
}

impl CommitSpec {
    /// Whether it may stand for a commit of this id.
    pub fn may_mean(&self, id: &CommitId) -> bool {
        match self {
            Self::Head { .. } => true,
            Self::Prefix(prefix) => id.to_string().starts_with(prefix),
        }
    }

    /// Parses what a person wrote.
    ///
    /// # Errors
    /// It is none of the forms.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let wrong = || {
            ApiError::usage(format!(
                "{text:?} names no commit: write a full id, at least 6 digits of one, head, or head~2."
            ))
        };
        if text == "head" {
            return Ok(Self::Head { before: 0 });
        }
        if let Some(before) = text.strip_prefix("head~") {
            let before = before.parse().map_err(|_| wrong())?;
            return Ok(Self::Head { before });
        }
        let text = text.to_ascii_lowercase();
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits && (PREFIX_LEN_MIN..=2 * CommitId::LEN).contains(&text.len()) {
            Ok(Self::Prefix(text))
        } else {
            Err(wrong())
        }
    }
}

impl Images {
    /// The newest `limit` commits of an image, newest first, each verified to be the parent of the one before.
    ///
    /// # Errors
    /// The home is away, or shows a history that does not hang together.
    pub async fn history(&self, image: &Image, limit: usize) -> Result<Vec<OpenCommit>, ApiError> {
        self.history_until(image, limit, |_| false).await
    }

    /// The same, read no further than to the page of one that is `last`.
    async fn history_until(
        &self,
        image: &Image,
        limit: usize,
        last: impl Fn(&OpenCommit) -> bool,
    ) -> Result<Vec<OpenCommit>, ApiError> {
        let mut history: Vec<OpenCommit> = Vec::new();
        let mut more = image.head.is_some();
        while more && history.len() < limit {
            let (page, older) = self.page(image, &history, limit).await?;
            more = older && !page.is_empty() && !page.iter().any(&last);
            history.extend(page);
        }
        history.truncate(limit);
        Ok(history)
    }

    /// The commits of an image that are known without the home, newest first: the head that was seen last, the
    /// signed `bases` of checkouts, and what the home has signed for as far as that is kept here.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub async fn history_seen(
        &self,
        image: &Image,
        bases: Vec<Vec<u8>>,
    ) -> Result<Vec<OpenCommit>, ApiError> {
        let id = image.row.image;
        let kept = self.state.with(move |db| db.acknowledged(id)).await;
        let kept = kept.map_err(ApiError::failed)?.into_iter();
        let known = bases.into_iter().chain(kept.map(|kept| kept.record));
        // Each was verified when it was written down.
        let known =
            known.filter_map(|record| self.trusted(|trust| trust.reopen_commit(id, &record)).ok());
        let mut seen: Vec<_> = image.head.clone().into_iter().chain(known).collect();
        seen.sort_by_key(|commit| (std::cmp::Reverse(commit.record().seq), commit.id));
        seen.dedup_by_key(|commit| commit.id);
        Ok(seen)
    }

    /// Finds the commits of an image that a person may mean.
    ///
    /// # Errors
    /// The home is away, or shows a history that does not hang together.
    pub(super) async fn resolve(
        &self,
        image: &Image,
        spec: &CommitSpec,
    ) -> Result<Vec<OpenCommit>, ApiError> {
        match spec {
            CommitSpec::Head { before: 0 } => Ok(image.head.clone().into_iter().collect()),
            CommitSpec::Head { before } => {
                let before = usize::try_from(*before).unwrap_or(usize::MAX);
                let history = self
                    .history(image, before.saturating_add(1))
                    .await?
                    .into_iter();
                Ok(history.skip(before).take(1).collect())
            }
            CommitSpec::Prefix(prefix) => {
                let begins = |commit: &OpenCommit| commit.id.to_string().starts_with(prefix);
                let whole = prefix.len() == 2 * CommitId::LEN;
                let only = |commit: &OpenCommit| whole && begins(commit);
                let history = self.history_until(image, usize::MAX, only).await?;
                Ok(history.into_iter().filter(begins).collect())
            }
        }
    }

    /// The commits below those that are known, and whether the home has older ones.
    async fn page(
        &self,
        image: &Image,
        known: &[OpenCommit],
        limit: usize,
    ) -> Result<(Vec<OpenCommit>, bool), ApiError> {
        let wanted = (limit - known.len()).min(RECORDS_PER_REPLY_MAX);
        let call = Call::Log {
            image: image.row.image,
            before: match known.last() {
                Some(oldest) => Some(oldest.record().seq),
                // A head that moves meanwhile does not matter.
                None => image.row.seq.and_then(Seq::next),
            },
            limit: u32::try_from(wanted).unwrap_or(u32::MAX),
        };
        let name = image.name().as_str();
        let answer = self.home.ask(call).await;
        let (commits, more) = match answer.map_err(|error| self.explain(&error, name))? {
            Answer::Log { commits, more } => (commits, more),
            _ => return Err(self.explain(&CallError::Protocol("no history"), name)),
        };
        let mut page: Vec<OpenCommit> = Vec::with_capacity(commits.len());
        for (commit, receipt) in commits {
            let opened = self.open_with_receipt(image, &commit, &receipt);
            let opened = opened.map_err(|error| unverified(&error))?;
            let newer = page.last().or(known.last());
            let fits = match newer {
                Some(newer) => {
                    let parent = newer.record().parent.map(|parent| parent.commit);
                    parent == Some(opened.id)
                        && opened.record().seq.next() == Some(newer.record().seq)
                }
                None => Some(opened.id) == image.head_id(),
            };
            if !fits {
                return Err(unverified(&RecordError::Misplaced));
            }
            page.push(opened);
        }
        Ok((page, more))
    }

    pub(super) fn open_with_receipt(
        &self,
        image: &Image,
        commit: &[u8],
        receipt: &[u8],
    ) -> Result<OpenCommit, RecordError> {
        let position = self.receipt_position(receipt)?;
        self.trusted(|trust| trust.open_commit(image.row.image, commit, Some(position)))
    }

    fn receipt_position(&self, receipt: &[u8]) -> Result<LogPosition, RecordError> {
        let receipt = SignedReceipt::decode(receipt).map_err(|_| RecordError::Malformed)?;
        if let Some(key) = self.home.home_key() {
            receipt
                .verify(&self.home.id(), key.as_bytes())
                .map_err(|_| RecordError::Signature)?;
        }
        Ok(receipt.record.position)
    }
}

/// Fewest digits of an id that stand for it.
const PREFIX_LEN_MIN: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_written_in_four_ways() {
        assert_eq!(
            CommitSpec::parse("head").unwrap(),
            CommitSpec::Head { before: 0 }
        );
        assert_eq!(
            CommitSpec::parse("head~12").unwrap(),
            CommitSpec::Head { before: 12 }
        );
        let full = "ab".repeat(32);
        assert_eq!(
            CommitSpec::parse(&full).unwrap(),
            CommitSpec::Prefix(full.clone())
        );
        assert_eq!(
            CommitSpec::parse("ABCDEF").unwrap(),
            CommitSpec::Prefix("abcdef".into())
        );
        for wrong in [
            "",
            "abcde",
            "head~",
            "head~x",
            "HEAD^",
            "xyzxyz",
            &format!("{full}0"),
        ] {
            assert_eq!(
                CommitSpec::parse(wrong).unwrap_err().kind.codes().1,
                2,
                "{wrong}"
            );
        }
    }
}
