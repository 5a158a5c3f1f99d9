//! Lease calls: contention between processes, and calls per second beside etcd.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use contend::fleet::{self, Order};
use contend::papers::{self, Device};
use contend::talk::{Plan, new_request};
use e2e::World;
use img_net::Connection;
use img_proto::{Answer, Call, Class, LeaseTerms, Request};
use img_types::{CheckoutId, DaemonNonce, ImageId, LeaseMode, Token};
use tokio::task::JoinSet;

use crate::etcd::{Etcd, EtcdClient};
use crate::rates::{Rate, Rates};
use crate::timing::core_seconds_of;

/// How long a round of one kind of call lasts.
const ROUND: Duration = Duration::from_secs(8);
/// Clients of each server.
const CLIENTS: u32 = 64;

/// Runs clients that are killed and stopped, and prints what they were told.
pub(crate) fn contend(order: &Order) -> Result<()> {
    let report = fleet::run(order)?;
    let findings = &report.findings;
    let seconds = report.took.as_secs_f64();
    println!(
        "{} clients, {} images, seed {}: {} calls answered in {seconds:.0} s ({:.0} calls/s)",
        order.clients,
        order.images,
        order.seed,
        findings.answered(),
        findings.answered() as f64 / seconds
    );
    for (name, (answered, refused)) in &findings.calls {
        println!("  {name:<12} {answered:>9} answered, {refused:>8} of them refused");
    }
    println!(
        "{} grants, {} of them over lapsed leases ({} were refused for staged work first); \
         {} renewals and commits under lapsed leases; {} commits",
        findings.grants, findings.lapses, findings.held_up, findings.late, findings.commits
    );
    println!("{:?}, {} fenced", report.disturbances, findings.fenced);
    for problem in &findings.problems {
        println!("PROBLEM: {problem}");
    }
    let problems = findings.problems.len() as u64 + findings.untold;
    ensure!(problems == 0, "{problems} problems");
    println!("Nothing was granted twice, lost, or told wrongly.");
    Ok(())
}

/// Durable calls per second, beside etcd on the same disk.
pub(crate) fn rate(rounds: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let etcd = Etcd::start(dir.path())?;
    let world = World::new()?;
    let (_, plan) = fleet::found(
        &world,
        &Order {
            calls: 0,
            clients: CLIENTS,
            images: CLIENTS,
            lapsing: 0,
            seed: 0,
            calm: Duration::ZERO,
        },
    )?;
    // One thread drives either side, so that the server has the other core.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut two = Rates::new(format!("two durable calls in turn, {CLIENTS} clients"));
    let mut one = Rates::new(format!("one durable call, {CLIENTS} clients"));
    runtime.block_on(async {
        let mut peers = Vec::new();
        for number in 0..CLIENTS {
            let client = EtcdClient::connect(etcd.address()).await?;
            let lease = String::new();
            peers.push(Peer {
                client,
                key: format!("image-{number}"),
                revision: "0".to_owned(),
                lease,
            });
        }
        let mut holders = Vec::new();
        for number in 1..=CLIENTS {
            holders.push(Holder::connect(&plan, number).await?);
        }
        for _ in 0..rounds {
            let id = etcd.process_id()?;
            let (rate, back) = round(id, 2, peers, async |peer: &mut Peer| {
                peer.lease = peer.client.grant().await?;
                peer.take().await
            })
            .await?;
            peers = back;
            two.add("etcd lease grant + txn", rate);
            let id = world.home.process_id()?;
            let (rate, back) = round(id, 2, holders, async |holder: &mut Holder| {
                holder.acquire().await?;
                holder.release().await
            })
            .await?;
            holders = back;
            two.add("imghome acquire + release", rate);

            let id = etcd.process_id()?;
            let (rate, back) = round(id, 1, peers, Peer::take).await?;
            peers = back;
            one.add("etcd txn", rate);
            for holder in &mut holders {
                holder.acquire().await?;
            }
            let id = world.home.process_id()?;
            let (rate, back) = round(id, 1, holders, Holder::renew).await?;
            holders = back;
            one.add("imghome renew", rate);
            for holder in &mut holders {
                holder.release().await?;
            }
        }
        anyhow::Ok(())
    })?;
    println!("{two}\n{one}");
    Ok(())
}

/// Lets all clients make their calls in turn, at once, for the time of a round.
async fn round<C, W>(process: u32, calls: u64, clients: Vec<C>, work: W) -> Result<(Rate, Vec<C>)>
where
    C: Send + 'static,
    W: for<'a> AsyncFn(&'a mut C) -> Result<()> + Clone + 'static,
{
    let core = core_seconds_of(process)?;
    let began = Instant::now();
    let tasks = tokio::task::LocalSet::new();
    let mut done = JoinSet::new();
    for mut client in clients {
        let work = work.clone();
        done.spawn_local_on(
            async move {
                let mut answered = 0;
                while began.elapsed() < ROUND {
                    work(&mut client).await?;
                    answered += calls;
                }
                anyhow::Ok((answered, client))
            },
            &tasks,
        );
    }
    let joined = tasks.run_until(async {
        let (mut answered, mut back) = (0, Vec::new());
        while let Some(joined) = done.join_next().await {
            let (calls, client) = joined??;
            answered += calls;
            back.push(client);
        }
        anyhow::Ok((answered, back))
    });
    let (calls, back) = joined.await?;
    let rate = Rate {
        calls,
        took: began.elapsed(),
        core: core_seconds_of(process)? - core,
    };
    Ok((rate, back))
}

/// A client of etcd that takes one key again and again.
#[derive(Debug)]
struct Peer {
    client: EtcdClient,
    key: String,
    revision: String,
    lease: String,
}

impl Peer {
    async fn take(&mut self) -> Result<()> {
        let taken = self.client.take(&self.key, &self.revision, &self.lease);
        self.revision = taken.await?;
        Ok(())
    }
}

/// A device that takes one image again and again.
#[derive(Debug)]
struct Holder {
    connection: Connection,
    image: ImageId,
    checkout: CheckoutId,
    token: Option<Token>,
}

impl Holder {
    async fn connect(plan: &Plan, number: u32) -> Result<Self> {
        let device = Device::of(number);
        let (address, hash) = (&plan.address, plan.home_key_hash);
        let connection = img_net::connect(address, hash, &device.identity()).await?;
        let nonce = DaemonNonce::from_bytes([1; 32]);
        let hello = Call::Hello { nonce, seen: None };
        let hello = Request {
            id: None,
            call: hello,
        };
        connection.call(&hello, Class::Control).await?.result?;
        let image = papers::image(number - 1);
        Ok(Self {
            connection,
            image,
            checkout: device.checkout(image),
            token: None,
        })
    }

    async fn acquire(&mut self) -> Result<()> {
        let call = Call::Acquire {
            image: self.image,
            checkout: self.checkout,
            terms: TERMS,
            expect_head: None,
            take_over: false,
        };
        match self.call(call).await? {
            Answer::Granted { token, .. } => self.token = Some(token),
            other => bail!("{other:?}"),
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<()> {
        let call = Call::Renew {
            image: self.image,
            checkout: self.checkout,
            token: self.token.context("a lease")?,
            terms: None,
        };
        self.call(call).await.map(drop)
    }

    async fn release(&mut self) -> Result<()> {
        let call = Call::Release {
            image: self.image,
            checkout: self.checkout,
            token: self.token.take().context("a lease")?,
        };
        self.call(call).await.map(drop)
    }

    async fn call(&self, call: Call) -> Result<Answer> {
        let request = new_request(call)?;
        let reply = self.connection.call(&request, Class::Control).await?;
        Ok(reply.result?)
    }
}

/// Ten minutes, as of etcd's leases.
const TERMS: LeaseTerms = LeaseTerms {
    ttl_ms: 600_000,
    mode: LeaseMode::Online,
};
