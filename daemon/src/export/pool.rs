//! A fixed number of threads that do what they are given.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

use super::ExportError;
use super::made::Report;

/// Something to fetch and write.
type Job<'env> = Box<dyn FnOnce() -> Result<(), ExportError> + Send + 'env>;

/// Where jobs are given; the threads end when it is dropped and all jobs are done.
pub(super) struct Pool<'env> {
    jobs: SyncSender<Job<'env>>,
}

impl<'env> Pool<'env> {
    /// Starts the threads.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        report: &'env Report<'_>,
    ) -> Self {
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..THREADS {
            let waiting = Arc::clone(&waiting);
            scope.spawn(move || work(&waiting, report));
        }
        Self { jobs }
    }

    /// Gives a job to the next thread that is free; waits while too many wait.
    pub(super) fn run(&self, job: impl FnOnce() -> Result<(), ExportError> + Send + 'env) {
        // The threads take jobs as long as this end is there.
        let _ = self.jobs.send(Box::new(job));
    }
}

/// Does jobs until there are no more; leaves them out once the export has failed.
fn work(waiting: &Mutex<Receiver<Job<'_>>>, report: &Report<'_>) {
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(job) = job else { return };
        if report.goes_on()
            && let Err(error) = job()
        {
            report.fail(error);
        }
    }
}

/// Fetches under way: with 64 KiB each they fill a link of 100 Mbit/s at 100 ms.
const THREADS: usize = 32;
/// Jobs that wait for a thread.
const WAITING_MAX: usize = 64;
