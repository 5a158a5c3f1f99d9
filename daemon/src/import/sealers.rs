//! Seals parts of files on all cores.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use img_index::NodeSink;
use img_seal::{Reference, Sealed, Sealer};
use img_types::ObjectId;
use img_types::limits::BLOCK_SIZE;
use img_types::object::ObjectKind;

use super::feed::{Bytes, Job, Jobs, PartError};
use super::{ImportError, ObjectSink, SinkClosed};
use crate::events::Reporter;

/// What all threads of an import share.
pub(super) struct Shared<'a> {
    sink: &'a dyn ObjectSink,
    reporter: &'a Reporter,
    done_bytes: AtomicU64,
    /// Zero while unknown.
    total_bytes: AtomicU64,
    ended: AtomicBool,
    closed: AtomicBool,
    seen: Mutex<HashSet<ObjectId>>,
    sealed_bytes: AtomicU64,
    objects: AtomicU64,
}

impl<'a> Shared<'a> {
    pub(super) fn new(sink: &'a dyn ObjectSink, reporter: &'a Reporter) -> Self {
        Self {
            sink,
            reporter,
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            seen: Mutex::default(),
            sealed_bytes: AtomicU64::new(0),
            objects: AtomicU64::new(0),
        }
    }

    /// Adds bytes that have been read or need not be.
    pub(super) fn advance(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total_bytes.load(Ordering::Relaxed);
        self.reporter
            .set(done, (total > 0).then(|| total.max(done)));
    }

    pub(super) fn files(&self, files: u64) {
        self.reporter.files(files);
    }

    pub(super) fn set_total(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Says that what does not matter for the outcome may stop.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Hands an object to the sink, unless that is known to have it.
    pub(super) fn push(&self, sealed: Sealed) -> Result<Reference, SinkClosed> {
        let reference = sealed.reference;
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.contains(&reference.id) {
                return Ok(reference);
            }
            if seen.len() < SEEN_MAX {
                seen.insert(reference.id);
            }
        }
        let len = sealed.bytes.len() as u64;
        self.sealed_bytes.fetch_add(len, Ordering::Relaxed);
        self.objects.fetch_add(1, Ordering::Relaxed);
        if let Err(closed) = self.sink.put(sealed) {
            self.closed.store(true, Ordering::Relaxed);
            return Err(closed);
        }
        Ok(reference)
    }

    /// Makes sure that the sink has taken everything.
    pub(super) fn check_open(&self) -> Result<(), SinkClosed> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(SinkClosed);
        }
        Ok(())
    }

    /// Bytes and number of the objects so far.
    pub(super) fn sealed(&self) -> (u64, u64) {
        (
            self.sealed_bytes.load(Ordering::Relaxed),
            self.objects.load(Ordering::Relaxed),
        )
    }

    /// Where nodes of the index go.
    pub(super) fn nodes(&self) -> Nodes<'_> {
        Nodes(self)
    }
}

/// Hands nodes to the sink. That it is closed shows at the next block, or at the end.
pub(super) struct Nodes<'a>(&'a Shared<'a>);

impl NodeSink for Nodes<'_> {
    fn put(&mut self, sealed: Sealed, _: Arc<img_index::Node>) {
        // Whether all were taken is asked once, at the end.
        let _ = self.0.push(sealed);
    }
}

/// Seals parts until there are no more.
pub(super) fn work(jobs: &Jobs, mut sealer: Sealer, shared: &Shared<'_>) {
    let mut buffer = Vec::new();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            bytes,
            offset,
            done,
        }) = job
        else {
            return;
        };
        let sealed = read(&bytes, &mut buffer)
            .map_err(PartError::Read)
            .and_then(|part| {
                let sealed = seal(part, offset, &mut sealer, shared).map_err(PartError::Fatal);
                shared.advance(part.len() as u64);
                sealed
            });
        // Who waited for it may have ended.
        let _ = done.send(sealed);
    }
}

/// Gets a part's bytes, in the buffer if they are in a file.
fn read<'b>(bytes: &'b Bytes, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    let (file, position, len, may_be_short) = match bytes {
        Bytes::Memory(bytes) => return Ok(bytes),
        Bytes::File {
            file,
            position,
            len,
            may_be_short,
        } => (file, *position, *len, *may_be_short),
    };
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut buffer[filled..len], position + filled as u64) {
            Ok(0) if may_be_short => {
                buffer[filled..len].fill(0);
                break;
            }
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(&buffer[..len])
}

/// Seals the blocks of a part that are not all zeros.
fn seal(
    part: &[u8],
    offset: u64,
    sealer: &mut Sealer,
    shared: &Shared<'_>,
) -> Result<Vec<(u64, Reference)>, ImportError> {
    let mut blocks = Vec::with_capacity(part.len().div_ceil(BLOCK_SIZE));
    for (content, at) in part.chunks(BLOCK_SIZE).zip((offset..).step_by(BLOCK_SIZE)) {
        let content = without_zeros_at_end(content);
        if !content.is_empty() {
            let sealed = sealer.seal(ObjectKind::Block, content)?;
            blocks.push((at, shared.push(sealed)?));
        }
    }
    Ok(blocks)
}

fn without_zeros_at_end(content: &[u8]) -> &[u8] {
    // Most blocks end in something else; long stretches of zeros are passed in words.
    let mut len = content.len();
    while len >= 16 && content[len - 16..len] == [0; 16] {
        len -= 16;
    }
    let rest = content[..len].iter().rposition(|byte| *byte != 0);
    &content[..rest.map_or(0, |last| last + 1)]
}

/// Ids that an import remembers to push each object once: 64 GB of different blocks. Beyond, an object that
/// comes again is offered again, and the home says that it has it.
const SEEN_MAX: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_are_no_content() {
        for len in [0, 1, 15, 16, 17, 40, 100] {
            for zeros in [0, 1, 15, 16, 17, 33] {
                let mut content = vec![7; len];
                content.resize(len + zeros, 0);
                assert_eq!(without_zeros_at_end(&content).len(), len, "{len} {zeros}");
            }
        }
        assert_eq!(without_zeros_at_end(&[1, 0, 2, 0]), [1, 0, 2]);
    }
}
