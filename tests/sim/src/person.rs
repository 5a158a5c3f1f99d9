//! People and mishaps: what is done at the devices, and what breaks.

use img_lease::Terms;
use img_lease::holder::Kind;
use img_types::{CheckoutId, ImageId, LeaseMode};

use crate::clock::{DAY, HOUR, MINUTE, Millis, SECOND, YEAR};
use crate::device::{Ctx, Device, Opening, Step};
use crate::luck::Luck;
use crate::net::Event;
use crate::process::Wish;
use crate::world::World;

/// How a run is: what happens in it, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Mood {
    /// What people do.
    pub acts: u64,
    /// Of ten thousand acts, how many are followed by a mishap.
    pub mishaps: u64,
    /// Whether the home is ever an old copy of itself.
    pub restores: bool,
    /// Whether a machine is ever copied.
    pub clones: bool,
    /// Whether members try what they may not.
    pub misuse: bool,
}

impl Mood {
    /// The mood of a seed.
    pub fn of(luck: &mut Luck) -> Self {
        Self {
            acts: luck.between(20, 160),
            mishaps: luck.pick(&[0, 300, 1_000, 2_500]).unwrap_or(0),
            restores: luck.chance(2_500),
            clones: luck.chance(2_000),
            misuse: luck.chance(3_000),
        }
    }
}

/// Somebody does something somewhere.
pub fn act(world: &mut World, mood: &Mood) {
    let awake: Vec<_> = world.devices.iter().filter(|it| it.is_awake()).collect();
    let awake: Vec<_> = awake.iter().map(|device| device.number).collect();
    let Some(number) = world.luck.pick(&awake) else {
        return;
    };
    let Some(device) = world.devices.get(number) else {
        return;
    };
    let rows: Vec<CheckoutId> = device.disk.read().checkouts.keys().copied().collect();
    let images: Vec<ImageId> = device
        .process
        .iter()
        .flat_map(|process| process.images.keys().copied())
        .collect();
    let what = world.luck.below(100);
    let checkout = world.luck.pick(&rows);
    let image = world.luck.pick(&images);
    let terms = terms(&mut world.luck);
    let odd = world.luck.chance(5_000);
    let misuse = mood.misuse;
    let Some(checkout) = checkout.filter(|_| what < 72) else {
        return open(world, number, image, terms, what);
    };
    at(world, number, |device, ctx| match what {
        0..30 => device.write(ctx, checkout),
        30..34 => device.sync(ctx, checkout),
        34..40 => device.checkpoint(ctx, checkout),
        40..54 => {
            if odd {
                device.keep_lease(ctx, checkout)?;
            }
            let wish = Wish::Commit {
                adopt: odd,
                take_over: odd && what.is_multiple_of(2),
            };
            device.wish(ctx, checkout, wish)
        }
        54..59 => device.wish(ctx, checkout, Wish::Stage),
        59..61 => device.wish(ctx, checkout, Wish::Branch),
        61..65 => device.release(ctx, checkout),
        65 => device.discard(ctx, checkout),
        66..69 => device.restore(ctx, checkout),
        69..72 => match image {
            Some(image) if misuse => device.misuse(ctx, image, checkout),
            _ => device.look(ctx),
        },
        _ => device.look(ctx),
    });
}

fn open(world: &mut World, number: usize, image: Option<ImageId>, terms: Terms, what: u64) {
    let new = ImageId::from_bytes(world.names.make());
    let take_over = world.luck.chance(2_000);
    let forced = world.luck.chance(5_000);
    at(world, number, |device, ctx| match (image, what % 20) {
        (None, 0..4) => device.open(ctx, new, terms, Opening::Create),
        (None, _) => device.look(ctx),
        (Some(image), 0..8) => device.open(ctx, image, terms, Opening::Lease { take_over }),
        (Some(image), 8..11) => device.open(ctx, image, terms, Opening::ReadOnly),
        (Some(image), 11..13) => device.open(ctx, image, terms, Opening::Steal { branch: false }),
        (Some(image), 13..15) => device.open(ctx, image, terms, Opening::Steal { branch: true }),
        (Some(image), 15) if what > 90 => device.delete(ctx, image, forced),
        (Some(_), 16) if what > 90 => device.open(ctx, new, terms, Opening::Create),
        _ => device.look(ctx),
    });
}

/// What a person who has seen that the home went back does: forward, or accept.
pub fn after_restore(device: &mut Device, ctx: &mut Ctx<'_>) -> Step {
    if ctx.luck.chance(7_000) {
        device.forward(ctx)
    } else {
        device.accept_restore(ctx)
    }
}

/// Something breaks.
pub fn mishap(world: &mut World, mood: &mut Mood) {
    let count = world.devices.len() as u64;
    let number = usize::try_from(world.luck.below(count)).unwrap_or(0);
    let until = world.now + span(&mut world.luck);
    let back = span(&mut world.luck);
    match world.luck.below(14) {
        0..2 => {
            world.with(number, |device, ctx| {
                device.crash(ctx);
                let again = ctx.now + ctx.luck.between(SECOND, HOUR);
                ctx.net.at(again, Event::DeviceUp(number));
            });
        }
        2 => world.with(number, |device, ctx| {
            device.crash(ctx);
            device.clocks.reboot(ctx.now);
            let again = ctx.now + ctx.luck.between(MINUTE, DAY);
            ctx.net.at(again, Event::DeviceUp(number));
        }),
        3..5 => {
            world.with(number, |device, _| device.asleep = true);
            world.net.at(until, Event::DeviceUp(number));
        }
        5..7 => {
            if let Some(cut) = world.net.cut_off.get_mut(number) {
                *cut = true;
            }
            world.net.at(until, Event::Reconnected(number));
        }
        7 => {
            let years = world.luck.chance(5_000);
            let by = if years { back.max(YEAR) } else { back };
            let by = i64::try_from(by).unwrap_or(0);
            let by = if world.luck.chance(5_000) { by } else { -by };
            world.with(number, |device, _| device.clocks.jump(by));
        }
        8..10 => world.crash_home(),
        10..12 if mood.restores && world.home.up => {
            if world.home.backup.is_none() || world.luck.chance(6_000) {
                world.home.backup = Some(world.home.kept.clone());
            } else {
                let silent = world.luck.chance(5_000);
                world.restore_home(silent);
                mood.restores = world.luck.chance(3_000);
            }
        }
        12 if mood.clones => {
            mood.clones = false;
            clone(world, number);
        }
        _ => {}
    }
}

/// A copy of a device's disk starts as a second daemon.
fn clone(world: &mut World, of: usize) {
    let number = world.devices.len();
    let Some(original) = world.devices.get(of) else {
        return;
    };
    let mut clocks = original.clocks.clone();
    clocks.reboot(world.now);
    let stored = original.disk.read().clone();
    let mut copy = Device::new(number, original.id, clocks, stored);
    copy.fault = original.fault;
    world.truth.copied(of, number, copy.id);
    world.trace.line(world.now, "mishap", || {
        format!("device{of} is copied as device{number}")
    });
    world.devices.push(copy);
    world.net.cut_off.push(false);
    let start = world.now + world.luck.between(SECOND, DAY);
    world.net.at(start, Event::DeviceUp(number));
}

/// How long it is until the next act; over long ones most machines sleep or are away.
pub fn pause(world: &mut World) -> Millis {
    let longest = match world.luck.below(1_000) {
        0..600 => 20 * SECOND,
        600..880 => 10 * MINUTE,
        880..975 => 3 * HOUR,
        975..995 => 3 * DAY,
        _ => 120 * DAY,
    };
    let pause = world.luck.between(1, longest);
    if pause > 6 * HOUR {
        for number in 0..world.devices.len() {
            let back = world.now + pause - world.luck.below(HOUR);
            if world.luck.chance(5_000) {
                world.with(number, |device, _| device.asleep = true);
                world.net.at(back, Event::DeviceUp(number));
            } else {
                if let Some(cut) = world.net.cut_off.get_mut(number) {
                    *cut = true;
                }
                world.net.at(back, Event::Reconnected(number));
            }
        }
    }
    pause
}

fn at(world: &mut World, number: usize, act: impl FnOnce(&mut Device, &mut Ctx<'_>) -> Step) {
    world.with(number, |device, ctx| device.act(ctx, act));
}

fn span(luck: &mut Luck) -> Millis {
    let longest = [MINUTE, HOUR, DAY, 90 * DAY];
    let longest = luck.pick(&longest).unwrap_or(MINUTE);
    luck.between(SECOND, longest)
}

fn terms(luck: &mut Luck) -> Terms {
    let (ttl_ms, mode) = match luck.below(8) {
        0 => (12 * MINUTE, LeaseMode::Online),
        1 => (40 * MINUTE, LeaseMode::Online),
        2..6 => (3 * HOUR, LeaseMode::Online),
        6 => (24 * HOUR, LeaseMode::Online),
        _ => (luck.between(1, 180) * DAY, LeaseMode::Offline),
    };
    Terms { ttl_ms, mode }
}

/// What people do with every checkout in the end: save what it has, and close it.
pub fn wind_up(world: &mut World, number: usize) {
    let Some(device) = world.devices.get(number) else {
        return;
    };
    let twins: Vec<_> = world
        .devices
        .iter()
        .filter(|it| it.id == device.id)
        .collect();
    let fenced = device
        .process
        .as_ref()
        .is_some_and(|process| process.fenced);
    let has_heir = twins.iter().any(|twin| {
        twin.number != number
            && !twin.gone
            && twin.process.as_ref().is_some_and(|process| !process.fenced)
    });
    let behind = device
        .process
        .as_ref()
        .is_some_and(|process| process.behind);
    if behind {
        let seen = device.disk.read().seen;
        let proved = seen.is_none_or(|seen| seen.incarnation != world.home.rows().incarnation());
        if proved {
            at(world, number, after_restore);
        }
        return;
    }
    let rows: Vec<CheckoutId> = device.disk.read().checkouts.keys().copied().collect();
    if fenced && !has_heir {
        // A restart makes it the newest.
        world.with(number, |device, ctx| {
            device.crash(ctx);
            device.start(ctx);
        });
        return;
    }
    if fenced {
        let mut saved = true;
        for checkout in rows {
            if world
                .devices
                .get(number)
                .is_some_and(|it| it.has_unsaved(checkout))
            {
                saved = false;
                at(world, number, |device, ctx| {
                    device.wish(ctx, checkout, Wish::Branch)
                });
            }
        }
        if saved {
            world.with(number, |device, ctx| {
                device.crash(ctx);
                device.gone = true;
            });
        }
        return;
    }
    for checkout in rows {
        let Some(device) = world.devices.get(number) else {
            return;
        };
        let row = device.disk.read().checkouts.get(&checkout);
        let kind = row.and_then(|row| Some(row.holder.as_ref()?.kind()));
        let unsaved = device.has_unsaved(checkout);
        let adopts = world.luck.chance(5_000);
        at(world, number, |device, ctx| match kind {
            Some(Kind::Orphan | Kind::ReadOnly) if unsaved && adopts => {
                let wish = Wish::Commit {
                    adopt: true,
                    take_over: true,
                };
                device.wish(ctx, checkout, wish)
            }
            Some(Kind::Orphan | Kind::ReadOnly) if unsaved => {
                device.wish(ctx, checkout, Wish::Branch)
            }
            Some(_) => device.release(ctx, checkout),
            None => Ok(()),
        });
    }
}
