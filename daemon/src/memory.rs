//! How the daemon's heap is kept small.
//!
//! Blocks are opened, read and dropped by many threads. glibc gives these up to eight arenas for each core, and keeps
//! in each what was freed in it. With two arenas in all the process held 173 instead of 187 MiB after a walk over
//! 150,000 files on two cores; the more cores, the more arenas there would be. `docs/numbers.md` says how that was
//! measured.

/// Has glibc use few arenas; call it before the first thread is started. Nothing happens with another C library.
pub fn use_few_arenas() {
    #[cfg(target_env = "gnu")]
    #[expect(
        unsafe_code,
        reason = "there is no safe way to set a parameter of malloc"
    )]
    // SAFETY: mallopt takes two numbers and changes a parameter of the allocator; no memory is touched, and no other
    // thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}

/// Arenas of the heap.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 2;
