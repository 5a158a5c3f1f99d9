//! Visits the points of a scenario: plays it up to a fault, crashes, starts again and checks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::disk::Way;
use crate::gate::Fault;
use crate::ledger::Ledger;
use crate::luck::Luck;
use crate::scenario::Scenario;
use crate::stage::{Place, Stage};

/// A scenario whose stage is set.
#[derive(Debug)]
pub struct Campaign {
    scenario: Scenario,
    stage: Stage,
    prepared: Ledger,
    seed: u64,
}

/// What one visit met.
#[derive(Debug)]
pub struct Visit {
    /// Steps of the victim, of which so many were syncs.
    pub counted: (u64, u64),
    /// The step that the fault met; none if the play ended before.
    pub hit: Option<String>,
}

impl Campaign {
    /// Sets the stage of a scenario.
    ///
    /// # Errors
    /// The programs do not run.
    pub fn new(scenario: Scenario, seed: u64) -> Result<Self> {
        let mut stage = Stage::new()?;
        let mut prepared = Ledger::default();
        (scenario.prepare)(&mut stage, &mut prepared)?;
        stage.save()?;
        Ok(Self {
            scenario,
            stage,
            prepared,
            seed,
        })
    }

    /// Plays without a fault and counts the steps and the syncs.
    ///
    /// # Errors
    /// The play fails by itself, or its check does.
    pub fn count(&mut self) -> Result<(u64, u64)> {
        let visit = self.visit(Fault::Count, Way::Everything)?;
        Ok(visit.counted)
    }

    /// Plays with a fault, crashes the victim in this way, and checks.
    ///
    /// # Errors
    /// Something that was acknowledged is lost, or work does not go on; or the machine fails.
    pub fn visit(&mut self, fault: Fault, way: Way) -> Result<Visit> {
        let mut ledger = self.prepared.clone();
        let luck = &mut Luck::new(self.seed ^ point_of(fault).rotate_left(20));
        self.stage.begin(self.scenario.victim, fault)?;
        let visited = match self.scenario.victim {
            Place::Home => bail!("no play crashes the home yet"),
            _ => self.device(fault, way, luck, &mut ledger),
        };
        let visited = visited.and_then(|visit| {
            (self.scenario.check)(&mut self.stage, &mut ledger)
                .with_context(|| format!("after {:?}", visit.hit))?;
            Ok(visit)
        });
        self.stage.clear();
        visited
    }

    fn device(
        &mut self,
        fault: Fault,
        way: Way,
        luck: &mut Luck,
        ledger: &mut Ledger,
    ) -> Result<Visit> {
        let victim = self.scenario.victim;
        let trigger = self.stage.disk(victim)?.trigger();
        let played = (self.scenario.play)(&mut self.stage.cast, ledger);
        let counted = trigger.counted();
        let hit = trigger.hit();
        if hit.is_none() {
            played.context("the play fails by itself")?;
        }
        if let (Fault::FailSync(_), Some(step)) = (fault, &hit) {
            self.ends_by_itself()
                .with_context(|| format!("after a failed {step}"))?;
        }
        trigger.disarm();
        self.stage.crash(victim, way, luck)?;
        self.stage
            .cast
            .a
            .restart()
            .with_context(|| format!("after {hit:?}"))?;
        Ok(Visit { counted, hit })
    }

    /// A process that cannot make durable what it promised must stop rather than pretend.
    fn ends_by_itself(&mut self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < STOP_MAX {
            if self.stage.cast.a.has_ended()? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the daemon goes on")
    }
}

fn point_of(fault: Fault) -> u64 {
    match fault {
        Fault::Asleep | Fault::Count => 0,
        Fault::Kill(at)
        | Fault::FailOnce(at)
        | Fault::FailFrom(at)
        | Fault::FailSync(at)
        | Fault::Full(at) => at,
    }
}

/// How long a process may take to stop after a sync that failed.
const STOP_MAX: Duration = Duration::from_secs(10);
