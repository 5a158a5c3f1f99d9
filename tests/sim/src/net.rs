//! The network and the calendar: what happens next, and whether a message arrives at all.

use std::collections::BTreeMap;

use crate::clock::{DAY, HOUR, MINUTE, Millis, SECOND};
use crate::luck::Luck;
use crate::wire::{Reply, Request};

/// Something that is to happen.
#[derive(Debug, Clone)]
pub enum Event {
    /// A request arrives at the home.
    AtHome(Request),
    /// A reply arrives at a device.
    AtDevice(usize, Reply),
    /// A device's timer; counts only if it is the one set last.
    DeviceTimer(usize, u64),
    /// The home's timer; as above.
    HomeTimer(u64),
    /// A device is switched on, or wakes.
    DeviceUp(usize),
    /// The home's process starts.
    HomeUp,
    /// A device's network comes back.
    Reconnected(usize),
    /// Somebody does something.
    Person,
    /// Something breaks.
    Fault,
}

/// How badly messages travel, in ten thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Lost.
    pub loss: u64,
    /// Delivered twice.
    pub doubled: u64,
    /// Delayed by seconds to days.
    pub late: u64,
}

/// What is to come, in order of time; of one moment in order of arrival here.
#[derive(Debug)]
pub struct Net {
    calendar: BTreeMap<(Millis, u64), Event>,
    number: u64,
    /// How badly messages travel now.
    pub weather: Weather,
    /// Devices that cannot reach the home.
    pub cut_off: Vec<bool>,
}

impl Net {
    /// An empty calendar for so many devices.
    pub fn new() -> Self {
        Self {
            calendar: BTreeMap::new(),
            number: 0,
            weather: Weather::default(),
            cut_off: Vec::new(),
        }
    }

    /// Writes something into the calendar.
    pub fn at(&mut self, when: Millis, event: Event) {
        self.number += 1;
        self.calendar.insert((when, self.number), event);
    }

    /// Takes what is next.
    pub fn take(&mut self) -> Option<(Millis, Event)> {
        let ((when, _), event) = self.calendar.pop_first()?;
        Some((when, event))
    }

    /// Sends a request, or loses it.
    pub fn to_home(&mut self, now: Millis, luck: &mut Luck, request: Request) {
        if self.cut_off.get(request.from).copied().unwrap_or(false) {
            return;
        }
        for when in self.arrivals(now, luck) {
            self.at(when, Event::AtHome(request.clone()));
        }
    }

    /// Sends a reply, or loses it.
    pub fn to_device(&mut self, now: Millis, luck: &mut Luck, device: usize, reply: Reply) {
        if self.cut_off.get(device).copied().unwrap_or(false) {
            return;
        }
        for when in self.arrivals(now, luck) {
            self.at(when, Event::AtDevice(device, reply.clone()));
        }
    }

    fn arrivals(&self, now: Millis, luck: &mut Luck) -> Vec<Millis> {
        let mut copies = 1;
        if luck.chance(self.weather.loss) {
            copies = 0;
        } else if luck.chance(self.weather.doubled) {
            copies = 2;
        }
        (0..copies)
            .map(|_| {
                let delay = if luck.chance(self.weather.late) {
                    let longest = [SECOND, MINUTE, HOUR, DAY];
                    let longest = luck.pick(&longest).unwrap_or(SECOND);
                    luck.between(1, longest * 3)
                } else {
                    luck.between(1, 80)
                };
                now + delay
            })
            .collect()
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}
