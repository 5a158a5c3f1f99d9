//! Sealing one changed block.

use img_index::{Extent, Inode, Patch, PatchPart, PatchRange};
use img_overlay::{BlockAction, BlockPlan, DirtySource, decide};
use img_proto::Class;
use img_seal::{Reference, Sealer};
use img_types::limits::PATCHES_MAX;
use img_types::object::ObjectKind;

use super::canvas::Canvas;
use super::{Made, SealError, Sealing};
use crate::block::{load_block, read_block};
use crate::objects::FetchError;

/// A block to seal.
pub(super) struct Job {
    pub(super) inode: Inode,
    pub(super) block: BlockPlan,
    /// How many of the block's bytes lie below the file's size.
    pub(super) len: u32,
    /// The file is small: it becomes inline if its content is at hand.
    pub(super) small: bool,
    pub(super) base: Base,
}

/// What the root has where a block is.
pub(super) enum Base {
    /// Still to be looked up.
    Unknown,
    Nothing,
    Inline(Vec<u8>),
    Extent(Extent),
}

/// What the map has there afterwards.
pub(super) enum Outcome {
    /// What it had.
    Same,
    Hole,
    Inline(Vec<u8>),
    Extent(Extent),
    /// An extent whose last patch is this section, in an object that is still to be made.
    Patch {
        base: Option<Reference>,
        patches: Vec<PatchPart>,
        section: Vec<PatchRange>,
    },
}

impl Sealing {
    /// Decides how a block is written, and seals and keeps it unless it goes into a patch.
    pub(super) fn seal_block(
        &self,
        job: &Job,
        sealer: &mut Sealer,
    ) -> Result<(Outcome, Made), SealError> {
        let Job { block, len, .. } = job;
        let base = match (&block.copied, &job.base) {
            (Some(copied), _) => Some(&**copied),
            (None, Base::Extent(extent)) => Some(extent),
            (None, Base::Inline(content)) => return self.whole(job, content, sealer),
            (None, Base::Nothing | Base::Unknown) => None,
        };
        if job.small {
            let content = match base.filter(|_| !block.covers(*len)) {
                Some(base) => load_block(&self.objects, base)?,
                None => Some(Default::default()),
            };
            if let Some(content) = content {
                return self.whole(job, &content, sealer);
            }
        }
        let mut action = decide(block, *len, base, true);
        if action == BlockAction::Merge
            && let Some(base) = base
        {
            match load_block(&self.objects, base)? {
                Some(content) => return self.merge(job, &content, sealer),
                None => action = decide(block, *len, Some(base), false),
            }
        }
        match (action, base) {
            (BlockAction::Keep, Some(base)) => Ok((Outcome::Extent(base.clone()), Made::default())),
            (BlockAction::Hole, _) => Ok((Outcome::Hole, Made::default())),
            (BlockAction::Patch, Some(base)) => {
                let mut canvas = Canvas::over(&[]);
                self.paint(&mut canvas, job)?;
                Ok((patch(base, base.patches.len(), &canvas), Made::default()))
            }
            (BlockAction::Merge | BlockAction::Fold, Some(base)) => self.fold(job, base, sealer),
            (_, None) | (BlockAction::Whole, _) => self.whole(job, &[], sealer),
        }
    }

    /// Lays the dirty bytes over `content` and writes the result.
    fn whole(
        &self,
        job: &Job,
        content: &[u8],
        sealer: &mut Sealer,
    ) -> Result<(Outcome, Made), SealError> {
        let mut canvas = Canvas::over(content);
        self.paint(&mut canvas, job)?;
        self.write(job, &canvas, sealer)
    }

    /// Lays the dirty bytes over the base's content; keeps the base's extent if nothing changed.
    fn merge(
        &self,
        job: &Job,
        content: &[u8],
        sealer: &mut Sealer,
    ) -> Result<(Outcome, Made), SealError> {
        let mut canvas = Canvas::over(content);
        self.paint(&mut canvas, job)?;
        if !canvas.equals(job.len, content) {
            return self.write(job, &canvas, sealer);
        }
        let same = match &job.block.copied {
            Some(copied) => Outcome::Extent(Extent::clone(copied)),
            None => Outcome::Same,
        };
        Ok((same, Made::default()))
    }

    /// Joins the last patches, as far as they are at hand, with the dirty bytes into one patch.
    fn fold(
        &self,
        job: &Job,
        base: &Extent,
        sealer: &mut Sealer,
    ) -> Result<(Outcome, Made), SealError> {
        let mut folded = Vec::new();
        for part in base.patches.iter().rev() {
            let Some(content) = self.objects.load_block(&part.reference) else {
                break;
            };
            folded.push(section(part, &content)?);
        }
        let left = base.patches.len() - folded.len();
        if left == PATCHES_MAX {
            let reading = read_block(&self.objects, base, Class::Demand);
            let content = self
                .runtime
                .block_on(reading)
                .map_err(|error| match error {
                    FetchError::Missing(_) | FetchError::Corrupt(_) => {
                        SealError::Lost(vec![job.inode])
                    }
                    error => error.into(),
                })?;
            return self.merge(job, &content, sealer);
        }
        let mut canvas = Canvas::over(&[]);
        for section in folded.iter().rev() {
            canvas.section(section);
        }
        self.paint(&mut canvas, job)?;
        if left == 0 && canvas.covers(job.len) {
            return self.write(job, &canvas, sealer);
        }
        Ok((patch(base, left, &canvas), Made::default()))
    }

    fn write(
        &self,
        job: &Job,
        canvas: &Canvas,
        sealer: &mut Sealer,
    ) -> Result<(Outcome, Made), SealError> {
        let content = canvas.content(job.len);
        if job.small {
            return Ok((Outcome::Inline(content.to_vec()), Made::default()));
        }
        if content.is_empty() {
            return Ok((Outcome::Hole, Made::default()));
        }
        let sealed = sealer.seal(ObjectKind::Block, content)?;
        let made = self.keep(&sealed)?;
        let extent = Extent {
            base: Some(sealed.reference),
            patches: Vec::new(),
        };
        Ok((Outcome::Extent(extent), made))
    }

    /// Lays a block's dirty bytes over a canvas. What lies behind the file's size is only ever zero.
    fn paint(&self, canvas: &mut Canvas, job: &Job) -> Result<(), SealError> {
        for dirty in &job.block.pieces {
            match dirty.source {
                DirtySource::Zero => canvas.zeros(dirty.offset, dirty.len),
                DirtySource::Arena(position) => {
                    let end = (dirty.offset + dirty.len).min(job.len);
                    let len = end.saturating_sub(dirty.offset);
                    if len > 0 {
                        let bytes = canvas.bytes(dirty.offset, len);
                        self.closed.arena.read_at(bytes, position)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Puts what was laid over a canvas behind the first `left` patches of an extent.
fn patch(base: &Extent, left: usize, canvas: &Canvas) -> Outcome {
    let section = canvas.patch();
    if section.is_empty() {
        return Outcome::Extent(base.clone());
    }
    Outcome::Patch {
        base: base.base,
        patches: base.patches[..left].to_vec(),
        section,
    }
}

/// The section of a patch object that a part names.
fn section(part: &PatchPart, content: &[u8]) -> Result<Vec<PatchRange>, FetchError> {
    let corrupt = FetchError::Corrupt(part.reference.id);
    let Ok(mut patch) = Patch::decode(content) else {
        return Err(corrupt);
    };
    let number = usize::from(part.section);
    if number < patch.sections.len() {
        Ok(patch.sections.swap_remove(number))
    } else {
        Err(corrupt)
    }
}
