//! Freezing takes the same work whatever is dirty: counted in allocations and bytes, not in time.

#![allow(
    unsafe_code,
    reason = "only a global allocator can count what a call allocates"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use img_index::{Attributes, FileKind, Inode, Key, Timestamp, Value};
use img_overlay::{Change, GenerationId, INFINITY, Overlay};

struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    CALLS.set(CALLS.get() + 1);
    BYTES.set(BYTES.get() + bytes as u64);
}

// SAFETY: every call goes to the system allocator unchanged; counting touches only this thread's
// cells, which have no destructor and need no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator and bytes asked of it while `work` runs.
fn cost<T>(work: impl FnOnce() -> T) -> (T, u64, u64) {
    let before = (CALLS.get(), BYTES.get());
    let result = work();
    (result, CALLS.get() - before.0, BYTES.get() - before.1)
}

fn attributes(inode: Inode) -> Change {
    let time = Timestamp {
        seconds: 0,
        nanos: 0,
    };
    let attributes = Attributes {
        kind: FileKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 1,
        mtime: time,
        ctime: time,
        rdev: 0,
        extents: None,
    };
    Change::Put(Key::attributes(inode), Value::Attributes(attributes))
}

/// An overlay with `count` ranges that do not touch, in eight files, and as many edits.
fn dirty(count: u64) -> Overlay {
    let mut overlay = Overlay::new(GenerationId(1));
    for n in 0..count {
        overlay.apply(Change::Write {
            inode: Inode(2 + n % 8),
            offset: n * 3,
            len: 1,
            arena: n * 2,
        });
        overlay.apply(attributes(Inode(2 + n)));
    }
    overlay
}

#[test]
fn a_freeze_costs_the_same_for_a_million_ranges_as_for_none() {
    let mut empty = dirty(0);
    let mut full = dirty(1_000_000);
    assert_eq!(full.dirty_bytes(), 1_000_000);
    let (_, calls, bytes) = cost(|| empty.freeze());
    let (_, full_calls, full_bytes) = cost(|| full.freeze());
    assert_eq!((full_calls, full_bytes), (calls, bytes));
    assert_eq!(calls, 1, "one allocation: the shared handle");
    assert!(bytes <= 512, "{bytes} bytes");
    assert!(full.top_is_empty());
    assert_eq!(full.closed().next().unwrap().dirty_bytes(), 1_000_000);
}

#[test]
fn dropping_or_truncating_a_large_file_looks_at_none_of_its_ranges() {
    let mut overlay = dirty(1_000_000);
    let (_, drop_calls, _) = cost(|| overlay.apply(Change::DropInode(Inode(2))));
    assert!(drop_calls < 16, "{drop_calls} calls of the allocator");
    assert_eq!(overlay.dirty_bytes(), 875_000);
    overlay.freeze();
    let (_, zero_calls, _) = cost(|| {
        overlay.apply(Change::Zero {
            inode: Inode(3),
            offset: 0,
            len: INFINITY,
        })
    });
    assert!(zero_calls < 16, "{zero_calls} calls of the allocator");
}
