//! A home and two devices whose state lies on disks that can be put back and crashed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use e2e::{Device, Home, World, process};

use crate::disk::{Disk, Way};
use crate::gate::Fault;
use crate::luck::Luck;
use crate::mount::{Mounted, Trigger};

/// Whose disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The home's folder.
    Home,
    /// The state folder of device `a`.
    A,
    /// The state folder of device `b`.
    B,
    /// Where backups go.
    Vault,
}

/// The devices, as the plays use them.
#[derive(Debug)]
pub struct Cast {
    /// The device that the plays are about.
    pub a: Device,
    /// The other one.
    pub b: Device,
    /// Where backups go.
    pub vault: PathBuf,
    /// The home's folder.
    pub home: PathBuf,
    fault: Fault,
    trigger: Option<Trigger>,
}

impl Cast {
    /// Has the fault happen from here on.
    pub fn arm(&self) {
        if let Some(trigger) = &self.trigger {
            trigger.arm(self.fault);
        }
    }
}

/// The home's process and all disks.
#[derive(Debug)]
pub struct Stage {
    /// The devices.
    pub cast: Cast,
    mounted: BTreeMap<Place, Mounted>,
    saved: BTreeMap<Place, Disk>,
    world: World,
}

impl Stage {
    /// Makes a home and its devices, which run on ordinary folders for now.
    ///
    /// # Errors
    /// The programs are not built or do not start.
    pub fn new() -> Result<Self> {
        let world = World::new()?;
        let a = world.founder("a")?;
        let b = world.joined("b", &a)?;
        let cast = Cast {
            a,
            b,
            vault: world.path("vault"),
            home: world.home.dir().to_owned(),
            fault: Fault::Asleep,
            trigger: None,
        };
        fs::create_dir(&cast.vault)?;
        Ok(Self {
            cast,
            mounted: BTreeMap::new(),
            saved: BTreeMap::new(),
            world,
        })
    }

    /// Ends everything that runs in good order and keeps what is on the disks as the beginning of every visit.
    ///
    /// # Errors
    /// Something does not end, or cannot be read.
    pub fn save(&mut self) -> Result<()> {
        for device in [&mut self.cast.a, &mut self.cast.b] {
            if !device.has_ended()? {
                device.stop()?;
            }
            process::unmount_below(&device.work());
        }
        self.world.home.stop()?;
        for place in [Place::Home, Place::A, Place::B, Place::Vault] {
            let disk = match self.mounted.remove(&place) {
                Some(mounted) => mounted.take()?,
                None => Disk::load(&self.dir(place))?,
            };
            self.saved.insert(place, disk);
        }
        Ok(())
    }

    /// Puts all disks back to where they were saved, and starts the home. The fault waits for the play to arm it.
    ///
    /// # Errors
    /// A disk cannot be mounted, or the home does not start.
    pub fn begin(&mut self, victim: Place, fault: Fault) -> Result<()> {
        self.clear();
        for (place, disk) in &self.saved {
            let mounted = Mounted::new(disk.clone(), &self.dir(*place))?;
            self.mounted.insert(*place, mounted);
        }
        self.cast.fault = fault;
        self.cast.trigger = self.mounted.get(&victim).map(Mounted::trigger);
        self.world.home.start()
    }

    /// Ends everything at once, whatever state it is in.
    pub fn clear(&mut self) {
        // Who has ended already needs no end, and a dead mount is detached whoever left it.
        drop(self.cast.a.kill());
        drop(self.cast.b.kill());
        drop(self.world.home.kill());
        for device in [&self.cast.a, &self.cast.b] {
            process::unmount_below(&device.work());
            // Folders that were mounted on stay behind.
            for left in fs::read_dir(device.work()).into_iter().flatten().flatten() {
                drop(fs::remove_dir(left.path()));
            }
        }
        self.mounted.clear();
    }

    /// The disk of a place.
    ///
    /// # Errors
    /// It is not mounted.
    pub fn disk(&self, place: Place) -> Result<&Mounted> {
        self.mounted.get(&place).context("the disk is not mounted")
    }

    /// Splits off what a thread needs that crashes a disk while the devices play.
    ///
    /// # Errors
    /// The disk is not mounted.
    pub fn split(&mut self, place: Place) -> Result<(&mut Cast, Crew<'_>)> {
        let dir = self.dir(place);
        let mounted = self.mounted.remove(&place);
        let crew = Crew {
            home: &mut self.world.home,
            disk: Some(mounted.context("the disk is not mounted")?),
            dir,
        };
        Ok((&mut self.cast, crew))
    }

    /// Puts a disk back that was split off.
    pub fn join(&mut self, place: Place, disk: Mounted) {
        self.mounted.insert(place, disk);
    }

    /// Kills whoever uses a disk, cuts its power, and mounts what is left.
    ///
    /// # Errors
    /// The disk cannot be unmounted or mounted.
    pub fn crash(&mut self, place: Place, way: Way, luck: &mut Luck) -> Result<()> {
        match place {
            Place::Home => drop(self.world.home.kill()),
            Place::A => drop(self.cast.a.kill()),
            Place::B => drop(self.cast.b.kill()),
            Place::Vault => {}
        }
        let mounted = self.mounted.remove(&place);
        let mounted = mounted.context("the disk is not mounted")?;
        let dir = self.dir(place);
        self.mounted.insert(place, cut(mounted, &dir, way, luck)?);
        Ok(())
    }

    /// The home.
    pub fn home(&mut self) -> &mut Home {
        &mut self.world.home
    }

    /// A path beside the disks.
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    fn dir(&self, place: Place) -> PathBuf {
        match place {
            Place::Home => self.world.home.dir().to_owned(),
            Place::A => self.cast.a.state(),
            Place::B => self.cast.b.state(),
            Place::Vault => self.cast.vault.clone(),
        }
    }
}

/// The home and its disk, for the thread that crashes them.
#[derive(Debug)]
pub struct Crew<'a> {
    /// The home.
    pub home: &'a mut Home,
    disk: Option<Mounted>,
    dir: PathBuf,
}

impl Crew<'_> {
    /// The disk.
    ///
    /// # Errors
    /// A crash did not end well.
    pub fn disk(&self) -> Result<&Mounted> {
        self.disk.as_ref().context("the disk is not mounted")
    }

    /// Kills the home, cuts the power of its disk, and starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub fn crash(&mut self, way: Way, luck: &mut Luck) -> Result<()> {
        drop(self.home.kill());
        let disk = self.disk.take().context("the disk is not mounted")?;
        self.disk = Some(cut(disk, &self.dir, way, luck)?);
        self.home.start()
    }

    /// Gives the disk back.
    ///
    /// # Errors
    /// A crash did not end well.
    pub fn leave(self) -> Result<Mounted> {
        self.disk.context("the disk is not mounted")
    }
}

fn cut(mounted: Mounted, dir: &Path, way: Way, luck: &mut Luck) -> Result<Mounted> {
    let mut disk = mounted.take()?;
    disk.cut(way, luck);
    Mounted::new(disk, dir)
}
