//! Counts the steps of the programs that use a disk, and does to them what a campaign wants done.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// What happens at which step; steps count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, and steps are not counted either.
    Asleep,
    /// Nothing; steps are counted.
    Count,
    /// Who takes this step is killed, and no later one is taken.
    Kill(u64),
    /// This step fails with EIO.
    FailOnce(u64),
    /// This step and all later ones fail with EIO.
    FailFrom(u64),
    /// This sync fails, of the syncs alone, and what it should have made durable never becomes it.
    FailSync(u64),
    /// From this step on there is no room.
    Full(u64),
}

/// What a step does to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Takes room: a write, a new name.
    Grow,
    /// Takes none: a removal, a cut.
    Shrink,
    /// A sync of a file or folder.
    Sync,
}

/// What becomes of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It happens.
    Done,
    /// It is a sync that loses what it should have kept.
    Lost,
    /// It does not happen.
    Refused(Errno),
}

/// Stands before every step.
#[derive(Debug)]
pub struct Gate {
    fault: Fault,
    steps: u64,
    syncs: u64,
    hit: Option<String>,
    is_dead: bool,
    /// The process, or a thread of it, that came last.
    last: u32,
}

impl Gate {
    /// A gate that lets everything pass.
    pub fn open() -> Self {
        Self {
            fault: Fault::Asleep,
            steps: 0,
            syncs: 0,
            hit: None,
            is_dead: false,
            last: 0,
        }
    }

    /// Begins to count, for this fault.
    pub fn arm(&mut self, fault: Fault) {
        *self = Self {
            fault,
            ..Self::open()
        };
    }

    /// Ends the fault; what is counted so far stays.
    pub fn disarm(&mut self) {
        self.fault = Fault::Asleep;
    }

    /// Steps and syncs so far.
    pub fn counted(&self) -> (u64, u64) {
        (self.steps, self.syncs)
    }

    /// The first step that was not left alone, in words.
    pub fn hit(&self) -> Option<&str> {
        self.hit.as_deref()
    }

    /// Kills whoever came last; nobody comes any more.
    pub fn shut(&mut self) {
        self.is_dead = true;
        kill(self.last);
    }

    /// Judges a step of a process or thread. `what` says in words what it is.
    pub fn judge(&mut self, act: Act, process: u32, what: impl FnOnce() -> String) -> Verdict {
        if self.is_dead {
            return Verdict::Refused(Errno::IO);
        }
        if self.fault == Fault::Asleep {
            return Verdict::Done;
        }
        self.last = process;
        self.steps += 1;
        self.syncs += u64::from(act == Act::Sync);
        let (step, sync) = (self.steps, self.syncs);
        let verdict = match self.fault {
            Fault::Kill(at) if step == at => {
                self.shut();
                Verdict::Refused(Errno::IO)
            }
            Fault::FailOnce(at) if step == at => Verdict::Refused(Errno::IO),
            Fault::FailFrom(at) if step >= at => Verdict::Refused(Errno::IO),
            Fault::FailSync(at) if act == Act::Sync && sync == at => Verdict::Lost,
            Fault::Full(at) if act == Act::Grow && step >= at => Verdict::Refused(Errno::NOSPC),
            _ => Verdict::Done,
        };
        if verdict != Verdict::Done && self.hit.is_none() {
            self.hit = Some(what());
        }
        verdict
    }
}

/// Kills the process that this thread belongs to.
fn kill(thread: u32) {
    let process = i32::try_from(thread).ok().and_then(Pid::from_raw);
    // The kernel's own threads have no number, and write back only what was mapped.
    if let Some(process) = process.filter(|process| *process != rustix::process::getpid()) {
        // Who is gone already needs no killing.
        let _ = kill_process(process, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(fault: Fault, acts: &[Act]) -> Vec<Verdict> {
        let mut gate = Gate::open();
        gate.arm(fault);
        let acts = acts.iter();
        acts.map(|act| gate.judge(*act, 0, String::new)).collect()
    }

    #[test]
    fn each_fault_meets_the_steps_that_it_names() {
        use Act::{Grow, Shrink, Sync};
        use Verdict::{Done, Lost, Refused};
        let acts = [Grow, Sync, Shrink, Grow, Sync];
        let io = || Refused(Errno::IO);
        let full = || Refused(Errno::NOSPC);
        assert_eq!(
            judged(Fault::Kill(2), &acts),
            [Done, io(), io(), io(), io()]
        );
        assert_eq!(
            judged(Fault::FailOnce(3), &acts),
            [Done, Done, io(), Done, Done]
        );
        assert_eq!(
            judged(Fault::FailFrom(4), &acts),
            [Done, Done, Done, io(), io()]
        );
        assert_eq!(
            judged(Fault::FailSync(2), &acts),
            [Done, Done, Done, Done, Lost]
        );
        assert_eq!(
            judged(Fault::Full(1), &acts),
            [full(), Done, Done, full(), Done]
        );
    }
}
