//! Visits the points of a scenario: plays it up to a fault, crashes, starts again and checks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

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
            Place::Home => self.home(fault, way, luck, &mut ledger),
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

    /// The victim's play ends with it; it is started again afterwards.
    fn device(
        &mut self,
        fault: Fault,
        way: Way,
        luck: &mut Luck,
        ledger: &mut Ledger,
    ) -> Result<Visit> {
        let victim = self.scenario.victim;
        let trigger = self.stage.disk(victim)?.trigger();
        let play = self.scenario.play;
        let cast = &mut self.stage.cast;
        let (played, ended) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                // With room again who waits for it goes on, and who was refused tries again.
                if matches!(fault, Fault::Full(_)) && trigger.wait_for_hit() {
                    std::thread::sleep(FULL_FOR);
                    trigger.disarm();
                }
                trigger.end_within(match fault {
                    Fault::FailFrom(_) => STOP_MAX,
                    _ => PLAY_MAX,
                })
            });
            let played = play(cast, ledger);
            trigger.end();
            (played, watch.join().expect("the watch does not panic"))
        });
        let (counted, hit) = (trigger.counted(), trigger.hit());
        let was_told = played.is_err();
        if hit.is_none() {
            played.context("the play fails by itself")?;
        }
        // On a disk that stays broken a daemon may say so and wait for ever.
        ensure!(
            ended || matches!(fault, Fault::FailFrom(_)),
            "the play does not end after {hit:?}"
        );
        let a = &mut self.stage.cast.a;
        // SQLite ignores a folder's sync that fails, and whoever syncs the folder next makes up for it.
        let counts = hit.as_ref().filter(|step| !may_pass(step));
        if let (Fault::FailSync(_), Some(step), Place::A) = (fault, counts, victim) {
            // What failed while nothing depended on it, as a database that is being made, may be refused instead.
            ensure!(
                was_told || has_ended(STOP_MAX, || a.has_ended())?,
                "the daemon goes on after a {step} that failed"
            );
        }
        trigger.disarm();
        // A full disk is no crash: with room again the same process goes on.
        let goes_on =
            matches!(fault, Fault::Full(_)) && (victim == Place::Vault || !a.has_ended()?);
        if !goes_on {
            self.stage.crash(victim, way, luck)?;
            if victim == Place::A {
                let restarted = self.stage.cast.a.restart();
                restarted.with_context(|| format!("after {hit:?}"))?;
            }
        }
        Ok(Visit { counted, hit })
    }

    /// The home comes back while the devices still play, and they must get to their end.
    fn home(
        &mut self,
        fault: Fault,
        way: Way,
        luck: &mut Luck,
        ledger: &mut Ledger,
    ) -> Result<Visit> {
        let play = self.scenario.play;
        let (cast, mut crew) = self.stage.split(Place::Home)?;
        let trigger = crew.disk()?.trigger();
        let (played, crew) = std::thread::scope(|scope| {
            let crew = scope.spawn(|| {
                let was_hit = trigger.wait_for_hit();
                if !matches!(fault, Fault::Full(_)) {
                    if was_hit && !matches!(fault, Fault::Kill(_)) {
                        let has_ended = has_ended(STOP_MAX, || crew.home.has_ended())?;
                        let step = trigger.hit().unwrap_or_default();
                        ensure!(
                            has_ended || !matches!(fault, Fault::FailSync(_)) || may_pass(&step),
                            "the home goes on after a sync that failed"
                        );
                    }
                    crew.crash(way, luck)?;
                } else if was_hit {
                    std::thread::sleep(FULL_FOR);
                    trigger.disarm();
                }
                Ok(crew)
            });
            let played = play(cast, ledger);
            trigger.end();
            (played, crew.join().expect("the crew does not panic"))
        });
        let (counted, hit) = (trigger.counted(), trigger.hit());
        let disk = crew.with_context(|| format!("after {hit:?}"))?.leave()?;
        self.stage.join(Place::Home, disk);
        played.with_context(|| format!("the play, with {hit:?}"))?;
        Ok(Visit { counted, hit })
    }
}

/// Whether a process ends within this time.
fn has_ended(within: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < within {
        if ask()? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

/// Whether a sync that fails may pass unnoticed: of a folder, or of the rollback journal that SQLite has only while
/// a database is being made, before anything is promised in it.
fn may_pass(step: &str) -> bool {
    step.starts_with("sync folder") || step.ends_with("-journal")
}

/// A way to go wrong that is tried at every point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// The process is killed and the power is cut, in each of three ways.
    Cut,
    /// One step fails with EIO, and the power is cut when the play has ended.
    ErrorOnce,
    /// All steps from one on fail with EIO, and the power is cut when the play has ended.
    Errors,
    /// One sync fails: the process must stop.
    FailedSync,
    /// From one step on there is no room, for a while.
    Full,
}

impl Trial {
    /// All trials.
    pub const ALL: [Self; 5] = [
        Self::Cut,
        Self::ErrorOnce,
        Self::Errors,
        Self::FailedSync,
        Self::Full,
    ];

    /// What the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cut => "power cut",
            Self::ErrorOnce => "EIO once",
            Self::Errors => "EIO from then on",
            Self::FailedSync => "sync fails",
            Self::Full => "disk full",
        }
    }

    /// How many points there are.
    pub fn points(self, (steps, syncs): (u64, u64)) -> u64 {
        match self {
            Self::FailedSync => syncs,
            _ => steps,
        }
    }

    /// What is tried at a point.
    pub fn faults(self, at: u64) -> Vec<(Fault, Way)> {
        match self {
            Self::Cut => Way::ALL.map(|way| (Fault::Kill(at), way)).to_vec(),
            Self::ErrorOnce => vec![(Fault::FailOnce(at), Way::Nothing)],
            Self::Errors => vec![(Fault::FailFrom(at), Way::Nothing)],
            Self::FailedSync => vec![(Fault::FailSync(at), Way::Nothing)],
            Self::Full => vec![(Fault::Full(at), Way::Nothing)],
        }
    }
}

/// So many points of `all`, evenly spread.
pub fn spread(all: u64, wanted: u64) -> impl Iterator<Item = u64> {
    let points = all.min(wanted);
    (0..points).map(move |n| 1 + n * all / points)
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

/// How long a process may take to stop after a step that failed.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How long a play may take that meets a fault.
const PLAY_MAX: Duration = Duration::from_secs(20);
/// How long a disk is full.
const FULL_FOR: Duration = Duration::from_millis(300);
