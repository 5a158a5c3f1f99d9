//! Everything of a run in one place, and what happens when something arrives.

use img_lease::holder::Kind;
use img_testkit::home::{Failure, ModelHome, Mutant};
use img_types::{DeviceId, Incarnation, Token};

use crate::checks::Truth;
use crate::clock::{Clocks, MINUTE, Millis, SECOND};
use crate::content::{Content, Library};
use crate::device::{Ctx, Device, Fault};
use crate::home::Home;
use crate::ids::Names;
use crate::luck::Luck;
use crate::net::{Event, Net};
use crate::stored::Stored;
use crate::trace::{Keep, Trace};
use crate::wire::{Ask, No, Reply, Request, Told};

/// One home, its devices, and all between them.
#[derive(Debug)]
pub struct World {
    /// True time.
    pub now: Millis,
    /// Luck.
    pub luck: Luck,
    /// The lines.
    pub trace: Trace,
    /// The network.
    pub net: Net,
    /// What roots stand for.
    pub library: Library,
    /// New names.
    pub names: Names,
    /// What the checks know.
    pub truth: Truth,
    /// The home.
    pub home: Home,
    /// The devices.
    pub devices: Vec<Device>,
    /// Events so far.
    pub steps: u64,
    /// How often a home's transaction is its last, in ten thousandths.
    pub home_crashes: u64,
    home_timer: u64,
}

impl World {
    /// A home and so many devices, all running, nothing broken yet.
    pub fn new(seed: u64, mutant: Option<Mutant>, fault: Option<Fault>, keep: Keep) -> Self {
        let mut luck = Luck::new(seed);
        let mut names = Names::default();
        let mut net = Net::new();
        let count = luck.between(2, 4);
        let drift = |luck: &mut Luck| i64::try_from(luck.below(2_001)).unwrap_or(0) - 1_000;
        let devices: Vec<_> = (0..usize::try_from(count).unwrap_or(2))
            .map(|number| {
                let id = DeviceId::from_bytes(names.make());
                let machine = u8::try_from(number).unwrap_or(0);
                let clocks = Clocks::new(machine, drift(&mut luck));
                let mut device = Device::new(number, id, clocks, Stored::default());
                device.fault = fault;
                device
            })
            .collect();
        net.cut_off = vec![false; devices.len()];
        let incarnation = Incarnation::from_bytes(names.make());
        let ids = devices.iter().map(|device| device.id);
        let home = Home::new(incarnation, ids, mutant, Clocks::new(255, drift(&mut luck)));
        let mut library = Library::default();
        library.keep(&Content::default());
        Self {
            now: 0,
            luck,
            trace: Trace::new(keep),
            net,
            library,
            names,
            truth: Truth::default(),
            home,
            devices,
            steps: 0,
            home_crashes: 0,
            home_timer: 0,
        }
    }

    /// Lets a device do something with everything it may use.
    pub fn with(&mut self, device: usize, act: impl FnOnce(&mut Device, &mut Ctx<'_>)) {
        let Some(device) = self.devices.get_mut(device) else {
            return;
        };
        let mut ctx = Ctx {
            now: self.now,
            luck: &mut self.luck,
            trace: &mut self.trace,
            net: &mut self.net,
            library: &mut self.library,
            names: &mut self.names,
            truth: &mut self.truth,
        };
        act(device, &mut ctx);
    }

    /// Lets one event happen that is no person's and no fault.
    pub fn happen(&mut self, event: Event) {
        match event {
            Event::AtHome(request) => self.at_home(&request),
            Event::AtDevice(device, reply) => {
                self.with(device, |device, ctx| device.hear(ctx, reply));
            }
            Event::DeviceTimer(device, timer) => self.with(device, |device, ctx| {
                if device.timer == timer {
                    device.wake(ctx);
                }
            }),
            Event::HomeTimer(timer) => {
                if timer == self.home_timer && self.home.up {
                    self.pass_home_time();
                    self.set_home_timer();
                }
            }
            Event::DeviceUp(device) => self.with(device, |device, ctx| {
                let slept = std::mem::replace(&mut device.asleep, false);
                if device.process.is_none() {
                    device.start(ctx);
                } else if slept {
                    device.wake(ctx);
                }
            }),
            Event::HomeUp => {
                if !self.home.up {
                    self.home.start(self.now);
                    self.say("starts");
                    self.set_home_timer();
                }
            }
            Event::Reconnected(device) => {
                if let Some(cut) = self.net.cut_off.get_mut(device) {
                    *cut = false;
                }
            }
            Event::Person | Event::Fault => {}
        }
    }

    /// The home's process dies, and is started again after a while.
    pub fn crash_home(&mut self) {
        if !self.home.up {
            return;
        }
        self.pass_home_time();
        self.home.crash(self.now);
        self.say("dies");
        let longest = self.luck.pick(&[SECOND, MINUTE, 60 * MINUTE]);
        let back = self.now + self.luck.between(1, longest.unwrap_or(SECOND) * 10);
        self.net.at(back, Event::HomeUp);
    }

    /// The home goes back to its old copy: declared by the operator, or as if nothing had happened.
    pub fn restore_home(&mut self, silent: bool) {
        let Some(backup) = self.home.backup.clone() else {
            return;
        };
        self.pass_home_time();
        self.truth.restored(&self.home, silent);
        let objects = std::mem::take(&mut self.home.kept.objects);
        self.home.replace(backup, self.now);
        if self.luck.chance(5_000) {
            // The object store is newer than the database: what it has is adopted.
            self.home.kept.objects.extend(objects);
        }
        self.say(if silent {
            "is an old copy, and nobody says so"
        } else {
            "is restored from a backup"
        });
        if !silent {
            let incarnation = self.new_incarnation();
            self.begin_anew(self.home.rows().restored(incarnation));
        }
        self.set_home_timer();
    }

    fn new_incarnation(&mut self) -> Incarnation {
        Incarnation::from_bytes(self.names.make())
    }

    fn begin_anew(&mut self, rows: ModelHome) {
        let before = self.home.rows().incarnation();
        self.home.begin_anew(rows);
        self.say("begins a new incarnation");
        self.truth.began_anew(&self.home, before);
    }

    fn say(&mut self, what: &str) {
        self.trace.line(self.now, "home", || what.to_owned());
    }

    fn at_home(&mut self, request: &Request) {
        if !self.home.up {
            return;
        }
        self.pass_home_time();
        let before = self.home.rows().standing();
        let crashes = self.luck.chance(self.home_crashes);
        if crashes && self.luck.chance(5_000) {
            if let Ask::Push(ids) = &request.ask {
                // Between spool and rows: some of what was not acknowledged is there.
                let some = ids.len() / 2;
                let ids = ids.iter().take(some).copied().collect();
                self.home.look(&Ask::Push(ids));
            }
            return self.crash_home();
        }
        let (known, told) = self.answer(request);
        if crashes {
            return self.crash_home();
        }
        let at = match request.ask {
            Ask::Mutate(..) => self.home.rows().standing(),
            _ => before,
        };
        self.trace.line(self.now, "home", || {
            let outcome = match &told {
                Ok(Told::Done(answer, _)) => format!("{answer:?}"),
                Ok(_) => "answered".to_owned(),
                Err(why) => format!("{why:?}"),
            };
            format!("device{} {}: {outcome}", request.from, request.ask.word())
        });
        let reply = Reply {
            process: request.process,
            connection: request.connection,
            number: request.number,
            before: request.before,
            at: known.then_some(at),
            told,
        };
        self.net
            .to_device(self.now, &mut self.luck, request.from, reply);
        self.set_home_timer();
    }

    fn answer(&mut self, request: &Request) -> (bool, Result<Told, No>) {
        let Some(device) = self.devices.get(request.from).map(|device| device.id) else {
            return (false, Err(No::HelloFirst));
        };
        match &request.ask {
            Ask::Hello { nonce, seen } => {
                let told = self.home.hello(request.connection, device, *nonce, *seen);
                if !matches!(told, Err(No::Home(Failure::WentBack { .. }))) {
                    self.truth.welcomed(request.from, request.before);
                }
                return (true, told);
            }
            Ask::Prove(seen) => {
                let incarnation = self.new_incarnation();
                if let Some(rows) = self.home.rows().proved(*seen, incarnation) {
                    self.begin_anew(rows);
                }
                return (true, Ok(Told::Heard));
            }
            _ => {}
        }
        let Some((device, nonce)) = self.home.who(request.connection) else {
            return (false, Err(No::HelloFirst));
        };
        let Ask::Mutate(id, call) = &request.ask else {
            return (true, Ok(self.home.look(&request.ask)));
        };
        let found = Truth::before(&self.home, device, nonce, call);
        let told = self.home.mutate(device, nonce, *id, call, &self.library);
        self.truth
            .after(&self.home, device, *id, call, &found, &told);
        (true, told)
    }

    /// Lets the home's time pass; whoever's lease lapses must have known before.
    fn pass_home_time(&mut self) {
        let held = |home: &Home| -> Vec<_> {
            let images = home.rows().images();
            images
                .filter_map(|image| {
                    let lease = image.lease.filter(|lease| !lease.lapsed)?;
                    Some((image.image, lease.epoch))
                })
                .collect()
        };
        let before = held(&self.home);
        self.home.pass_time(self.now);
        let after = held(&self.home);
        for (image, epoch) in before {
            if after.contains(&(image, epoch)) {
                continue;
            }
            let token = Token {
                incarnation: self.home.rows().incarnation(),
                epoch,
            };
            self.say("lets a lease lapse");
            for device in &self.devices {
                let now = device.clocks.moment(self.now);
                let stored = device.disk.read().checkouts.values();
                let late = stored
                    .filter_map(|row| row.holder.as_ref())
                    .filter(|holder| holder.image() == image && holder.kind() == Kind::Leased)
                    .filter_map(|holder| holder.tenure())
                    .filter(|tenure| tenure.token == token && !tenure.term.past(&now))
                    .count();
                // After a reboot only the wall clock is left, and this one was set back.
                let misled = device.clocks.set_back() > 0 && device.clocks.boots() > 1;
                // Nobody can know that an old copy has lost a renewal, which no log has.
                if late > 0 && !misled && !self.truth.was_put_back() {
                    self.truth
                        .fail(|| format!("{} counts on a lease that has lapsed", device.label));
                }
            }
        }
    }

    fn set_home_timer(&mut self) {
        if let Some(next) = self.home.next_deadline(self.now) {
            self.home_timer += 1;
            self.net.at(next, Event::HomeTimer(self.home_timer));
        }
    }
}
