//! One block while dirty bytes and patches are laid over it.

use img_index::PatchRange;
use img_types::limits::BLOCK_SIZE;

/// The bytes of one block, and which of them were laid over what was there before.
pub(super) struct Canvas {
    content: Vec<u8>,
    marks: Vec<Mark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// As it was.
    Below,
    /// Laid over, with bytes of its own.
    Bytes,
    /// Laid over with zeros.
    Zeros,
}

impl Canvas {
    /// Starts with a content, at most a block, and zeros behind it.
    pub(super) fn over(base: &[u8]) -> Self {
        let mut content = vec![0; BLOCK_SIZE];
        let len = base.len().min(BLOCK_SIZE);
        content[..len].copy_from_slice(&base[..len]);
        Self {
            content,
            marks: vec![Mark::Below; BLOCK_SIZE],
        }
    }

    /// Lays bytes over `len` bytes from `offset` on; whoever calls fills them.
    pub(super) fn bytes(&mut self, offset: u32, len: u32) -> &mut [u8] {
        let range = offset as usize..(offset + len) as usize;
        self.marks[range.clone()].fill(Mark::Bytes);
        &mut self.content[range]
    }

    /// Lays zeros over `len` bytes from `offset` on.
    pub(super) fn zeros(&mut self, offset: u32, len: u32) {
        let range = offset as usize..(offset + len) as usize;
        self.marks[range.clone()].fill(Mark::Zeros);
        self.content[range].fill(0);
    }

    /// Lays the ranges of a patch's section over the block.
    pub(super) fn section(&mut self, ranges: &[PatchRange]) {
        for range in ranges {
            match &range.bytes {
                Some(bytes) => self.bytes(range.offset, range.len).copy_from_slice(bytes),
                None => self.zeros(range.offset, range.len),
            }
        }
    }

    /// Whether all of the first `len` bytes were laid over.
    pub(super) fn covers(&self, len: u32) -> bool {
        !self.marks[..len as usize].contains(&Mark::Below)
    }

    /// The first `len` bytes, without the zeros at their end.
    pub(super) fn content(&self, len: u32) -> &[u8] {
        let content = &self.content[..len as usize];
        let end = content.iter().rposition(|byte| *byte != 0);
        &content[..end.map_or(0, |last| last + 1)]
    }

    /// Whether the first `len` bytes followed by zeros are `other`, a whole block.
    pub(super) fn equals(&self, len: u32, other: &[u8]) -> bool {
        let (same, zeros) = other.split_at(len as usize);
        self.content[..len as usize] == *same && zeros.iter().all(|byte| *byte == 0)
    }

    /// What was laid over, as the section of a patch.
    pub(super) fn patch(&self) -> Vec<PatchRange> {
        let mut offset = 0;
        let mut ranges = Vec::new();
        for run in self.marks.chunk_by(|one, next| one == next) {
            let bytes = &self.content[offset..offset + run.len()];
            let bytes = match run[0] {
                Mark::Below => None,
                Mark::Zeros => Some(None),
                Mark::Bytes if bytes.iter().all(|byte| *byte == 0) => Some(None),
                Mark::Bytes => Some(Some(bytes.to_vec())),
            };
            if let Some(bytes) = bytes {
                ranges.push(PatchRange {
                    offset: in_block(offset),
                    len: in_block(run.len()),
                    bytes,
                });
            }
            offset += run.len();
        }
        ranges
    }
}

fn in_block(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a block is shorter than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_what_was_laid_over_last() {
        let mut canvas = Canvas::over(b"0123456789");
        canvas.bytes(2, 4).copy_from_slice(b"abcd");
        canvas.zeros(4, 10);
        canvas.section(&[PatchRange {
            offset: 12,
            len: 1,
            bytes: Some(vec![b'x']),
        }]);
        let patch = canvas.patch();
        let shape: Vec<_> = patch
            .iter()
            .map(|range| (range.offset, range.len, range.bytes.as_deref()))
            .collect();
        assert_eq!(
            shape,
            [
                (2, 2, Some(&b"ab"[..])),
                (4, 8, None),
                (12, 1, Some(&b"x"[..])),
                (13, 1, None),
            ]
        );
        assert_eq!(canvas.content(14), b"01ab\0\0\0\0\0\0\0\0x");
        assert_eq!(canvas.content(4), b"01ab");
        assert!(!canvas.covers(3) && !canvas.covers(15));

        let mut copy = Canvas::over(b"0123456789");
        copy.section(&patch);
        assert_eq!(copy.content(100), canvas.content(100));
        assert_eq!(copy.patch(), patch);
    }

    #[test]
    fn bytes_that_are_zero_are_stored_as_zeros() {
        let mut canvas = Canvas::over(&[]);
        canvas.bytes(0, 10).fill(0);
        assert!(canvas.covers(10));
        assert_eq!(canvas.content(10), b"");
        assert_eq!(canvas.patch()[0].bytes, None);
    }

    #[test]
    fn equality_looks_at_the_whole_block() {
        let canvas = Canvas::over(b"abc");
        let mut other = vec![0; BLOCK_SIZE];
        other[..3].copy_from_slice(b"abc");
        assert!(canvas.equals(3, &other) && canvas.equals(5, &other));
        other[70] = 1;
        assert!(
            !canvas.equals(3, &other),
            "what lies behind the size counts"
        );
    }
}
