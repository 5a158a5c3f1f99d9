//! Reading neighbours at once: objects that were uploaded together lie and are asked for together.

use bytes::Bytes;
use img_store::Place;
use img_types::ObjectId;

use super::{Objects, Read, sound};
use crate::db::Stop;
use crate::db::objects::Located;

/// Most bytes of one read: enough that opening a file does not count.
const RUN_LEN_MAX: u64 = 1024 * 1024;
/// Bytes between two objects that are read along: the framing of a spool.
const GAP_MAX: u64 = 256;

/// Objects that one read brings, in the order asked; one that is not here is a run of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    parts: Vec<(ObjectId, Option<Located>)>,
}

impl Run {
    /// Cuts a list of objects into runs.
    pub(crate) fn cut(wanted: impl IntoIterator<Item = (ObjectId, Option<Located>)>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for (id, located) in wanted {
            let grown = runs.last_mut().filter(|run| run.takes(located));
            match grown {
                Some(run) => run.parts.push((id, located)),
                None => runs.push(Self {
                    parts: vec![(id, located)],
                }),
            }
        }
        runs
    }

    fn takes(&self, next: Option<Located>) -> bool {
        let (Some((_, Some(first))), Some((_, Some(last))), Some(next)) =
            (self.parts.first(), self.parts.last(), next)
        else {
            return false;
        };
        let gap = next.place.offset.checked_sub(last.place.end());
        next.store == last.store
            && gap.is_some_and(|gap| gap <= GAP_MAX)
            && next.place.end() - first.place.offset <= RUN_LEN_MAX
    }

    /// How many bytes the run reads.
    pub(crate) fn len(&self) -> u64 {
        let located = self.parts.iter().filter_map(|(_, located)| *located);
        located.map(|located| u64::from(located.place.len)).sum()
    }

    /// What covers all of the run; nothing for a single object.
    fn whole(&self) -> Option<Located> {
        match self.parts[..] {
            [(_, Some(first)), .., (_, Some(last))] => Some(Located {
                place: Place {
                    offset: first.place.offset,
                    len: u32::try_from(last.place.end() - first.place.offset).ok()?,
                },
                ..first
            }),
            _ => None,
        }
    }

    /// Reads the run; each object is here or not, or cannot be read.
    pub(crate) async fn read(self, objects: &Objects) -> Vec<Result<Option<Bytes>, Stop>> {
        if let Some(whole) = self.whole()
            && let Ok(Some(bytes)) = objects.read_at(whole).await
        {
            let slice = |located: Located| {
                let start = usize::try_from(located.place.offset - whole.place.offset).ok()?;
                let end = start + located.place.len as usize;
                (end <= bytes.len()).then(|| bytes.slice(start..end))
            };
            let slices = self.parts.iter().filter_map(|(id, located)| {
                let bytes = located.and_then(slice)?;
                Some((*id, bytes))
            });
            let slices: Vec<_> = slices.collect();
            if slices.len() == self.parts.len()
                && let Ok(sound) = sound(slices).await
                && sound.iter().all(Option::is_some)
            {
                return sound.into_iter().map(Ok).collect();
            }
        }
        // One at a time: some may have moved, or are damaged.
        let mut read = Vec::with_capacity(self.parts.len());
        for (id, located) in self.parts {
            read.push(match located {
                Some(located) => objects.read(id, located).await.map(Read::sound),
                None => Ok(None),
            });
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::objects::StoreNumber;

    fn at(store: u64, offset: u64, len: u32) -> Option<Located> {
        Some(Located {
            store: StoreNumber(store),
            pack: None,
            place: Place { offset, len },
        })
    }

    #[test]
    fn neighbours_are_read_at_once_and_nothing_else_is() {
        let big = 600 * 1024;
        let wanted = [
            at(1, 100, 50),
            at(1, 198, 50),
            None,
            at(1, 300, 50),
            at(2, 350, 50),
            at(2, 340, 50),
            at(2, 10_000, big),
            at(2, 10_000 + u64::from(big), big),
        ];
        let wanted = (0u8..).zip(wanted);
        let wanted = wanted.map(|(n, located)| (ObjectId::from_bytes([n; 32]), located));
        let runs = Run::cut(wanted);
        let lens: Vec<usize> = runs.iter().map(|run| run.parts.len()).collect();
        assert_eq!(lens, [2, 1, 1, 1, 1, 1, 1]);
        assert_eq!(runs[0].whole(), at(1, 100, 148));
        assert!(runs[1..].iter().all(|run| run.whole().is_none()));
        assert!(Run::cut([]).is_empty());
    }
}
