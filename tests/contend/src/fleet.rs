//! The run: a home, its clients, and what is done to both.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use e2e::{World, binary};
use img_proto::{Answer, Call, Class, LeaseTerms, Request};
use img_records::{AnyInvite, FoundingInvite};
use img_types::{LeaseMode, Seq, WallMillis};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use crate::check::{self, Evidence, Findings};
use crate::client::FENCED;
use crate::journal::{self, Journal, Nanos};
use crate::luck::Luck;
use crate::papers::{self, Device, Draft, FOUNDER};
use crate::talk::{Over, Plan, Talk, new_request};

/// How often the fleet is looked after.
const TICK: Duration = Duration::from_millis(5);
/// Longest time that a process is stopped. Past two seconds its peers take it for gone.
const STOPPED_MAX_MS: usize = 2_500;

/// How a run goes.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// Calls of all clients together that are answered, at least.
    pub calls: u64,
    /// Client processes.
    pub clients: u32,
    /// Images that they contend for.
    pub images: u32,
    /// The last ones of them: nobody steals these, and whoever holds one sleeps past its deadline.
    pub lapsing: u32,
    /// Chooses what clients do and what is done to them.
    pub seed: u64,
    /// Mean time between two disturbances.
    pub calm: Duration,
}

/// What was done to the processes of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disturbances {
    /// Clients that were stopped for a while.
    pub stopped: u64,
    /// Clients that were killed and begun anew.
    pub killed: u64,
    /// Clients that were begun anew while the life before was only stopped.
    pub doubled: u64,
    /// Times that the home was killed.
    pub home_killed: u64,
    /// Times that the home was stopped for a while.
    pub home_stopped: u64,
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// From the first client's start to the last one's end.
    pub took: Duration,
    /// What was done to the processes.
    pub disturbances: Disturbances,
    /// What the check found.
    pub findings: Findings,
}

/// Runs clients against a home until all calls are answered, and checks everything they were told.
///
/// # Errors
/// The programs are not built, or something failed that is no finding.
pub fn run(order: &Order) -> Result<Report> {
    let mut world = World::new()?;
    let (dir, plan) = found(&world, order)?;

    let began = Instant::now();
    let mut fleet = Fleet::start(&dir, order)?;
    fleet.contend(&mut world)?;
    let took = began.elapsed();

    world.home.stop()?;
    world.home.start()?;
    let (home_key, histories) = runtime()?.block_on(histories(&dir, &plan))?;
    world.home.stop()?;
    let evidence = Evidence {
        home_key,
        histories,
        home_killed: std::mem::take(&mut fleet.home_killed),
        log: check::read_log(&world.home.dir().join("home.sqlite"))?,
        home: verdict(world.home.dir())?,
        dir,
        plan,
    };
    Ok(Report {
        took,
        disturbances: fleet.disturbances,
        findings: check::check(&evidence)?,
    })
}

/// Founds a home with so many clients and images; tells the folder of the run and its plan.
///
/// # Errors
/// The home refuses something or cannot be reached.
pub fn found(world: &World, order: &Order) -> Result<(PathBuf, Plan)> {
    let dir = world.path("fleet");
    let Ok(AnyInvite::Founding(invite)) = world.home.invite()?.parse() else {
        bail!("imghome invite printed no founding invite");
    };
    let plan = Plan {
        address: world.home.address().to_owned(),
        home_key_hash: invite.home_key_hash,
        clients: order.clients,
        images: order.images,
        lapsing: order.lapsing,
        calls_each: order.calls.div_ceil(u64::from(order.clients)),
        seed: order.seed,
    };
    for number in FOUNDER..=plan.clients {
        std::fs::create_dir_all(journal::folder(&dir, number))?;
    }
    std::fs::write(dir.join(Plan::FILE), serde_json::to_vec(&plan)?)?;
    runtime()?.block_on(prepare(&dir, &plan, &invite))?;
    Ok((dir, plan))
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

/// Founds the home, puts everybody on the roster and makes the images with a first commit each.
async fn prepare(dir: &Path, plan: &Plan, invite: &FoundingInvite) -> Result<()> {
    let founder = Device::of(FOUNDER);
    let (roster, mut entries) = papers::roster(plan.clients)?;
    let joiners = entries.split_off(1);
    let genesis = entries.pop().context("a roster begins with its genesis")?;
    let connection =
        img_net::connect(&plan.address, plan.home_key_hash, &founder.identity()).await?;
    let found = Request {
        id: None,
        call: Call::Found {
            secret: invite.secret,
            genesis,
        },
    };
    connection.call(&found, Class::Control).await?.result?;
    connection.close();

    let journal = Journal::create(&journal::path(dir, FOUNDER, 0))?;
    let talk = Talk::begin(plan, &founder, journal, None)?;
    for entry in joiners {
        ask(&talk, Call::RosterAppend { entry }).await?;
    }
    for number in 0..plan.images {
        let image = papers::image(number);
        let checkout = founder.checkout(image);
        let create = Call::CreateImage {
            descriptor: founder.descriptor(roster.home(), number).to_bytes().into(),
            checkout,
            terms: LeaseTerms {
                ttl_ms: 3_600_000,
                mode: LeaseMode::Online,
            },
        };
        let Answer::Granted { token, .. } = ask(&talk, create).await? else {
            bail!("no grant");
        };
        let Answer::Upload { upload } = ask(&talk, Call::OpenUpload { checkout }).await? else {
            bail!("no upload");
        };
        let (root, object) = papers::root(u64::from(number));
        talk.push(upload, &object).await?.result?;
        let draft = Draft {
            image,
            seq: Seq(0),
            parent: None,
            root,
            token,
            clock: WallMillis(0),
        };
        let commit = founder.commit(&roster, &draft).to_bytes().into();
        ask(&talk, Call::Commit { commit }).await?;
        let release = Call::Release {
            image,
            checkout,
            token,
        };
        ask(&talk, release).await?;
    }
    Ok(())
}

async fn ask(talk: &Talk, call: Call) -> Result<Answer> {
    let request = new_request(call)?;
    Ok(talk.request(&request).await?.result?)
}

/// The home's key and the whole history of each image, oldest first.
async fn histories(dir: &Path, plan: &Plan) -> Result<([u8; 32], check::Histories)> {
    let journal = Journal::create(&journal::path(dir, FOUNDER, 1))?;
    let talk = Talk::begin(plan, &Device::of(FOUNDER), journal, None)?;
    let mut histories = BTreeMap::new();
    for number in 0..plan.images {
        let image = papers::image(number);
        let mut history: Vec<check::Entry> = Vec::new();
        let mut before = None;
        loop {
            let call = Call::Log {
                image,
                before,
                limit: 256,
            };
            let Answer::Log { commits, more } = ask(&talk, call).await? else {
                bail!("no log");
            };
            for (commit, receipt) in commits {
                history.push(check::Entry::decode(&commit, &receipt)?);
            }
            before = history.last().map(|entry| entry.commit.record.seq);
            if !more {
                break;
            }
        }
        history.reverse();
        histories.insert(image, history);
    }
    match talk.home_key().await {
        Ok(key) => Ok((key, histories)),
        Err(error) => Err(Over::Broken(error.to_string()).into()),
    }
}

/// What `imghome check` says of a home.
fn verdict(home: &Path) -> Result<serde_json::Value> {
    let checked = Command::new(binary("imghome")?)
        .arg("check")
        .arg(home)
        .arg("--json")
        .output()?;
    serde_json::from_slice(&checked.stdout).context("imghome check prints JSON")
}

/// A client process.
#[derive(Debug)]
struct Life {
    child: Child,
    /// When it goes on.
    stopped_until: Option<Instant>,
}

/// The lives of one client that have not ended.
#[derive(Debug, Default)]
struct Member {
    lives: Vec<Life>,
    begun: u32,
    done: bool,
}

/// All clients.
#[derive(Debug)]
struct Fleet {
    program: PathBuf,
    dir: PathBuf,
    members: BTreeMap<u32, Member>,
    luck: Luck,
    calm: Duration,
    home_stopped_until: Option<Instant>,
    home_killed: Vec<Nanos>,
    disturbances: Disturbances,
}

impl Fleet {
    fn start(dir: &Path, order: &Order) -> Result<Self> {
        let mut fleet = Self {
            program: binary("contend-client")?,
            dir: dir.to_owned(),
            members: BTreeMap::new(),
            luck: Luck::new(order.seed),
            calm: order.calm,
            home_stopped_until: None,
            home_killed: Vec::new(),
            disturbances: Disturbances::default(),
        };
        for number in 1..=order.clients {
            fleet.members.insert(number, Member::default());
            fleet.begin(number)?;
        }
        Ok(fleet)
    }

    /// Begins another life of a client.
    fn begin(&mut self, number: u32) -> Result<()> {
        let member = self.members.entry(number).or_default();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("clients.log"))?;
        let child = Command::new(&self.program)
            .arg(&self.dir)
            .args([number.to_string(), member.begun.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        member.begun += 1;
        member.lives.push(Life {
            child,
            stopped_until: None,
        });
        Ok(())
    }

    /// Disturbs everybody until all are done.
    fn contend(&mut self, world: &mut World) -> Result<()> {
        let mut next = Instant::now();
        while !self.all_ended()? {
            self.go_on(world)?;
            if Instant::now() >= next {
                self.disturb(world)?;
                let mean_us = usize::try_from(self.calm.as_micros())?;
                let rest = self.luck.below(2 * mean_us + 1);
                next = Instant::now() + Duration::from_micros(u64::try_from(rest)?);
            }
            std::thread::sleep(TICK);
        }
        if self.home_stopped_until.take().is_some() {
            signal(world.home.process_id()?, Signal::CONT)?;
        }
        Ok(())
    }

    /// Takes note of lives that ended. Whoever of two lives said Hello last is the newer one, so that
    /// either may end by itself.
    fn all_ended(&mut self) -> Result<bool> {
        let mut bereft = Vec::new();
        for (number, member) in &mut self.members {
            let mut left = Vec::new();
            for mut life in member.lives.drain(..) {
                match life.child.try_wait()? {
                    Some(status) => match status.code() {
                        Some(0) => member.done = true,
                        Some(code) if code == i32::from(FENCED) => {}
                        _ => bail!("client {number}: {status}\n{}", log(&self.dir)),
                    },
                    None => left.push(life),
                }
            }
            member.lives = left;
            if member.lives.is_empty() && !member.done {
                bereft.push(*number);
            }
        }
        for number in bereft {
            self.begin(number)?;
        }
        let mut members = self.members.values();
        Ok(members.all(|member| member.done && member.lives.is_empty()))
    }

    /// Lets processes go on whose time has come.
    fn go_on(&mut self, world: &World) -> Result<()> {
        let now = Instant::now();
        let lives = self
            .members
            .values_mut()
            .flat_map(|member| &mut member.lives);
        for life in lives {
            if life.stopped_until.is_some_and(|until| until <= now) {
                life.stopped_until = None;
                signal(life.child.id(), Signal::CONT)?;
            }
        }
        if self.home_stopped_until.is_some_and(|until| until <= now) {
            self.home_stopped_until = None;
            signal(world.home.process_id()?, Signal::CONT)?;
        }
        Ok(())
    }

    /// Does something to one process.
    fn disturb(&mut self, world: &mut World) -> Result<()> {
        let until =
            Instant::now() + Duration::from_millis(u64::try_from(self.luck.below(STOPPED_MAX_MS))?);
        let what = self.luck.below(100);
        if what < 3 {
            self.home_stopped_until = None;
            world.home.kill()?;
            self.home_killed.push(journal::now());
            world.home.start()?;
            self.disturbances.home_killed += 1;
            return Ok(());
        }
        if what < 6 {
            signal(world.home.process_id()?, Signal::STOP)?;
            self.home_stopped_until = Some(until);
            self.disturbances.home_stopped += 1;
            return Ok(());
        }
        let alone = |member: &Member| !member.done && member.lives.len() == 1;
        let members = self.members.iter();
        let alone: Vec<u32> = members
            .filter(|(_, member)| alone(member))
            .map(|(number, _)| *number)
            .collect();
        if alone.is_empty() {
            return Ok(());
        }
        let number = alone[self.luck.below(alone.len())];
        let member = self.members.get_mut(&number).context("a member")?;
        let life = member.lives.last_mut().context("it has a life")?;
        if (45..85).contains(&what) {
            life.child.kill()?;
            // It may have ended well just before.
            member.done |= life.child.wait()?.success();
            member.lives.pop();
            self.disturbances.killed += 1;
            return Ok(());
        }
        signal(life.child.id(), Signal::STOP)?;
        life.stopped_until = Some(until);
        if what < 45 {
            self.disturbances.stopped += 1;
        } else {
            self.disturbances.doubled += 1;
            self.begin(number)?;
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // None is left unless the run failed.
        for life in self
            .members
            .values_mut()
            .flat_map(|member| &mut member.lives)
        {
            drop(life.child.kill());
            drop(life.child.wait());
        }
    }
}

fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("clients.log")).unwrap_or_default()
}

fn signal(process: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    // A child that was not waited for keeps its id.
    Ok(kill_process(pid.context("a process id")?, signal)?)
}
