//! One seed, one run: chaos, then healing, then everything has to be in order.

use std::collections::BTreeSet;

use img_testkit::home::Mutant;

use crate::clock::{MINUTE, Millis, SECOND};
use crate::device::{Fault, Opening};
use crate::ids;
use crate::net::{Event, Weather};
use crate::person::{self, Mood};
use crate::trace::Keep;
use crate::world::World;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// What is wrong with the home.
    pub mutant: Option<Mutant>,
    /// What is wrong with the devices.
    pub fault: Option<Fault>,
    /// How much is written down.
    pub keep: Keep,
}

impl Options {
    /// A seed with nothing wrong and nothing written down.
    pub fn seed(seed: u64) -> Self {
        Self {
            seed,
            mutant: None,
            fault: None,
            keep: Keep::Nothing,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// What did not hold.
    pub failure: Option<String>,
    /// Events.
    pub steps: u64,
    /// Durable writes of the devices: the steps around which a process may die.
    pub durable_writes: u64,
    /// Commits that the home acknowledged.
    pub commits: usize,
    /// Virtual time.
    pub virtual_ms: Millis,
    /// The lines that were kept.
    pub trace: String,
}

/// Runs one seed.
pub fn run(options: Options) -> Report {
    let mut world = World::new(options.seed, options.mutant, options.fault, options.keep);
    let mut mood = Mood::of(&mut world.luck);
    begin(&mut world);
    chaos(&mut world, &mut mood);
    heal(&mut world);
    wind_up(&mut world);
    let disks = world.devices.iter().map(|device| device.disk.writes());
    Report {
        seed: options.seed,
        failure: world.truth.broken().map(str::to_owned),
        steps: world.steps,
        durable_writes: disks.sum(),
        commits: world.truth.commits(),
        virtual_ms: world.now,
        trace: world.trace.text(),
    }
}

/// All devices start, and the first makes an image.
fn begin(world: &mut World) {
    for number in 0..world.devices.len() {
        world.with(number, |device, ctx| device.start(ctx));
    }
    until(world, 5 * SECOND, &mut |_| {});
    let image = img_types::ImageId::from_bytes(world.names.make());
    let terms = img_lease::Terms::usual();
    world.with(0, |device, ctx| {
        device.act(ctx, |device, ctx| {
            device.open(ctx, image, terms, Opening::Create)
        });
    });
    until(world, 5 * SECOND, &mut |_| {});
    let first = world.devices.first();
    let first = first.and_then(|device| device.disk.read().checkouts.keys().next().copied());
    if let Some(checkout) = first {
        let wish = crate::process::Wish::Commit {
            adopt: false,
            take_over: false,
        };
        world.with(0, |device, ctx| {
            device.act(ctx, |device, ctx| {
                device.write(ctx, checkout)?;
                device.wish(ctx, checkout, wish)
            });
        });
    }
    until(world, 5 * SECOND, &mut |_| {});
    for number in 0..world.devices.len() {
        world.with(number, |device, ctx| {
            device.act(ctx, |device, ctx| device.look(ctx));
        });
    }
    until(world, 5 * SECOND, &mut |_| {});
}

fn chaos(world: &mut World, mood: &mut Mood) {
    let rates = [0, 50, 300, 1_000];
    let rate = |world: &mut World| world.luck.pick(&rates).unwrap_or(0);
    world.net.weather = Weather {
        loss: rate(world),
        doubled: rate(world),
        late: rate(world),
    };
    let crashes = world.luck.pick(&[0, 20, 100, 400]).unwrap_or(0);
    for device in &mut world.devices {
        device.disk.set_crashes(crashes);
    }
    world.home_crashes = world.luck.pick(&[0, 20, 200]).unwrap_or(0);
    let mut acts = mood.acts;
    let first = world.now + 1;
    world.net.at(first, Event::Person);
    while acts > 0 && world.truth.broken().is_none() && world.steps < STEPS_MAX {
        let Some((now, event)) = world.net.take() else {
            break;
        };
        step(world, now, event, &mut |world| {
            acts -= 1;
            if world.luck.chance(300) {
                recover_some(world);
            }
            person::act(world, mood);
            if world.luck.chance(mood.mishaps) {
                person::mishap(world, mood);
            }
            let next = world.now + person::pause(world);
            world.net.at(next, Event::Person);
        });
    }
}

/// Somebody looks after a machine that does not go on by itself.
fn recover_some(world: &mut World) {
    for number in 0..world.devices.len() {
        let process = world.devices.get(number).and_then(|it| it.process.as_ref());
        let Some(process) = process else {
            continue;
        };
        let (behind, fenced) = (process.behind, process.fenced);
        if behind {
            world.with(number, |device, ctx| {
                device.act(ctx, person::after_restore);
            });
        } else if fenced && world.luck.chance(5_000) {
            world.with(number, |device, ctx| {
                device.crash(ctx);
                device.start(ctx);
            });
        }
    }
}

/// Everything that was broken is mended.
fn heal(world: &mut World) {
    world.net.weather = Weather::default();
    world.home_crashes = 0;
    world.home.backup = None;
    for cut in &mut world.net.cut_off {
        *cut = false;
    }
    if !world.home.up {
        world.happen(Event::HomeUp);
    }
    for number in 0..world.devices.len() {
        world.with(number, |device, ctx| {
            device.disk.set_crashes(0);
            device.asleep = false;
            if device.process.is_none() {
                device.start(ctx);
            } else {
                device.wake(ctx);
            }
        });
    }
    // Longer than any pause between two tries to reach the home.
    until(world, 150 * MINUTE, &mut |_| {});
}

/// People save and close everything: that has to come to an end, and nothing may be lost.
fn wind_up(world: &mut World) {
    for _ in 0..ROUNDS_MAX {
        if world.truth.broken().is_some() {
            return;
        }
        check_all(world);
        if is_quiet(world) {
            check_leases(world);
            return;
        }
        for number in 0..world.devices.len() {
            person::wind_up(world, number);
        }
        until(world, 10 * MINUTE, &mut |_| {});
    }
    let stuck = world.devices.iter().find(|device| !device.is_quiet());
    let stuck = stuck.map(|device| device.label.clone());
    world
        .truth
        .fail(|| format!("{} never comes to rest", stuck.unwrap_or_default()));
}

fn is_quiet(world: &World) -> bool {
    world.devices.iter().all(|device| device.is_quiet())
}

/// Nobody holds what nobody uses, but where a clone or a thief's gift was left behind.
fn check_leases(world: &mut World) {
    for image in world.home.rows().images() {
        let Some(lease) = image.lease else {
            continue;
        };
        let excused =
            world.truth.is_cloned(lease.device) || world.truth.losers.contains(&lease.checkout);
        if !excused {
            world.truth.fail(|| {
                format!(
                    "the lease of i{} is held for c{}, which is gone",
                    ids::short(image.image.as_bytes()),
                    ids::short(lease.checkout.as_bytes())
                )
            });
        }
    }
}

/// Lets time pass.
fn until(world: &mut World, span: Millis, person: &mut dyn FnMut(&mut World)) {
    let end = world.now + span;
    let mut budget = BUDGET;
    while world.truth.broken().is_none() && budget > 0 {
        let Some((now, event)) = world.net.take() else {
            break;
        };
        if now > end {
            world.net.at(now, event);
            break;
        }
        budget -= 1;
        step(world, now, event, person);
    }
    if budget == 0 {
        world.truth.fail(|| "something goes on for ever".to_owned());
    }
    world.now = world.now.max(end);
}

fn step(world: &mut World, now: Millis, event: Event, person: &mut dyn FnMut(&mut World)) {
    world.now = now;
    world.steps += 1;
    let touched = match &event {
        Event::AtDevice(device, _) | Event::DeviceTimer(device, _) => Some(*device),
        _ => None,
    };
    match event {
        Event::Person => person(world),
        event => world.happen(event),
    }
    if let Some(device) = touched {
        check_device(world, device);
    }
    if world.steps.is_multiple_of(CHECK_EVERY) {
        check_all(world);
    }
}

/// A device keeps what it must: cuts as they were taken, and an outbox with all that no commit has.
fn check_device(world: &mut World, number: usize) {
    let Some(device) = world.devices.get(number) else {
        return;
    };
    for (checkout, row) in &device.disk.read().checkouts {
        if row.checkpoints.is_empty() {
            continue;
        }
        let base = world.library.open(row.base_root());
        for (generation, content) in &row.checkpoints {
            world
                .truth
                .check_cut(number, *checkout, *generation, content);
            let sealed = *generation <= row.sealed;
            if sealed
                && content
                    .beyond(&base)
                    .iter()
                    .any(|id| !row.outbox.contains(id))
            {
                world
                    .truth
                    .fail(|| format!("the outbox of {} lacks what no commit has", device.label));
            }
        }
    }
}

fn check_all(world: &mut World) {
    world.truth.check_history(&world.home, &world.library);
    let mut there = BTreeSet::new();
    for device in world.devices.iter().filter(|device| !device.gone) {
        for row in device.disk.read().checkouts.values() {
            there.extend(row.content.writes());
            for content in row.checkpoints.values() {
                there.extend(content.writes());
            }
        }
    }
    world.truth.check_writes(&world.library, &there);
}

/// Events after which a run's chaos ends.
const STEPS_MAX: u64 = 20_000;
/// Events between two looks at everything.
const CHECK_EVERY: u64 = 64;
/// Rounds in which people close everything.
const ROUNDS_MAX: u32 = 60;
/// Events in one round of healing after which something is in a loop.
const BUDGET: u32 = 50_000;
