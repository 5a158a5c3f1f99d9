//! Threads for work that yields to everything else: sealing, and reading what is pushed.
//!
//! The application whose changes are sealed runs on the same cores and the same disk, and its files are served by this
//! process. So background work has threads of its own with a low priority: for the disk the idle class, for the cores
//! niceness 10. Not `SCHED_IDLE`: a thread that holds the lock of the cache and gets no core would hold up whoever
//! serves the application. Only work that somebody may wait for within seconds, and not within microseconds, belongs
//! here.

use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::setpriority_process;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Works on a thread of low priority, which may block. As with `spawn_blocking`, work that has begun is finished, also
/// when nobody waits for it.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    // Never driven: it is there for its threads.
    static THREADS: OnceLock<Runtime> = OnceLock::new();
    let threads = THREADS.get_or_init(|| {
        Builder::new_current_thread()
            .max_blocking_threads(THREADS_MAX)
            .thread_name("imgd-background")
            .on_thread_start(yield_to_others)
            .build()
            .expect("a runtime without I/O and timers needs nothing from the system")
    });
    threads.spawn_blocking(work)
}

/// The time that this thread has spent on a core.
pub fn core_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// Gives this thread, and those that it starts, a low priority. Where the system refuses it works as any other.
fn yield_to_others() {
    // Linux takes "this process" for the calling thread, and that is what is wanted.
    if let Err(error) = setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "background work has no low priority for the cores");
    }
    #[expect(unsafe_code, reason = "there is no safe call for the priority of I/O")]
    // SAFETY: ioprio_set takes three numbers and changes how the kernel orders this thread's I/O; no memory is touched.
    let set = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) };
    if set != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "background work has no low priority for the disk");
    }
}

/// One seal, which starts threads of its own, and reads for a few uploads.
const THREADS_MAX: usize = 4;
/// About a tenth of the share of a core that an ordinary thread gets.
const NICENESS: i32 = 10;
/// `IOPRIO_WHO_PROCESS` of linux/ioprio.h.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)` of linux/ioprio.h.
const IOPRIO_IDLE: libc::c_int = 3 << 13;

#[cfg(test)]
mod tests {
    use super::*;

    /// Niceness as `/proc` shows it, the 19th field, and the priority of I/O.
    fn priorities() -> (i32, libc::c_long) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let after_name = stat.rsplit(')').next().unwrap();
        let niceness = after_name.split_whitespace().nth(16).unwrap();
        #[expect(unsafe_code, reason = "there is no safe call for the priority of I/O")]
        // SAFETY: ioprio_get takes two numbers and touches no memory.
        let io = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
        (niceness.parse().unwrap(), io)
    }

    #[tokio::test]
    async fn background_work_yields_and_nothing_else_does() {
        let before = priorities();
        let low = (NICENESS, libc::c_long::from(IOPRIO_IDLE));
        let (own, started) = run(|| {
            let started = std::thread::spawn(priorities).join().unwrap();
            (priorities(), started)
        })
        .await
        .unwrap();
        assert_eq!((own, started), (low, low));
        assert_eq!(priorities(), before);
        let others = tokio::task::spawn_blocking(priorities).await.unwrap();
        assert_eq!(others, before);
    }
}
