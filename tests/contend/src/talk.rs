//! One daemon's conversation with the home: what is asked is written down first, and asked until it is
//! answered.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use futures_util::stream;
use img_net::{Connection, Link, LinkConfig, LinkError};
use img_proto::{Answer, Call, Class, Refusal, Reply, Request, Standing};
use img_types::{DaemonNonce, RequestId, UploadId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::journal::{Journal, Line, now};
use crate::papers::Device;

/// Between two attempts at a call while the home is away.
const PAUSE: Duration = Duration::from_millis(50);

/// What all processes of one run agree on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Where the home listens.
    pub address: String,
    /// The pinned hash of its key.
    pub home_key_hash: [u8; 32],
    /// Clients, beside the founder.
    pub clients: u32,
    /// Images they contend for.
    pub images: u32,
    /// The last ones of them, which lapse instead of being stolen.
    pub lapsing: u32,
    /// Answered calls after which a client is done.
    pub calls_each: u64,
    /// Chooses what clients do, and what is done to them.
    pub seed: u64,
}

impl Plan {
    /// Where the plan lies in the folder of a run.
    pub const FILE: &str = "plan.json";

    /// Reads a run's plan.
    ///
    /// # Errors
    /// There is none.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(
            dir.join(Self::FILE),
        )?)?)
    }
}

/// Why a conversation is over.
#[derive(Debug, thiserror::Error)]
pub enum Over {
    /// A newer daemon with the same keys is known.
    #[error("a newer daemon is known")]
    Fenced,
    /// Something happened that must not.
    #[error("{0}")]
    Broken(String),
}

/// The conversation.
#[derive(Debug)]
pub struct Talk {
    link: Link,
    shared: Arc<Shared>,
    over: watch::Receiver<Option<Greeting>>,
}

#[derive(Debug)]
struct Shared {
    nonce: DaemonNonce,
    journal: Journal,
    seen: Mutex<Option<Standing>>,
}

/// How a Hello ended that was refused.
#[derive(Debug, Clone)]
enum Greeting {
    Fenced,
    Refused(Refusal),
}

impl Talk {
    /// Begins to connect as a new daemon of a device.
    ///
    /// # Errors
    /// This machine gives no random bytes.
    pub fn begin(
        plan: &Plan,
        device: &Device,
        journal: Journal,
        seen: Option<Standing>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            nonce: DaemonNonce::from_bytes(random()?),
            journal,
            seen: Mutex::new(seen),
        });
        let (end, over) = watch::channel(None);
        let end = Arc::new(end);
        let config = LinkConfig {
            address: plan.address.clone(),
            home_key_hash: plan.home_key_hash,
            identity: device.identity(),
        };
        let greeter = Arc::clone(&shared);
        let link = Link::new(config, move |connection| {
            let (shared, end) = (Arc::clone(&greeter), Arc::clone(&end));
            async move {
                let greeted = shared.hello(&connection).await;
                if let Err(LinkError::Refused(refusal)) = &greeted {
                    end.send_replace(Some(match refusal {
                        Refusal::InstanceFenced => Greeting::Fenced,
                        other => Greeting::Refused(other.clone()),
                    }));
                }
                greeted
            }
        });
        Ok(Self { link, shared, over })
    }

    /// Asks until there is an answer.
    ///
    /// # Errors
    /// The conversation is over.
    pub async fn request(&self, request: &Request) -> Result<Reply, Over> {
        self.note(&Line::Sent(now(), request.clone()))?;
        loop {
            match self.link.call(request, Class::Control).await {
                Ok(reply) => return self.heard(reply),
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// Sends one object and waits until it is durable; the answer is written down as if it were a call's.
    ///
    /// # Errors
    /// The conversation is over.
    pub async fn push(&self, upload: UploadId, object: &Bytes) -> Result<Reply, Over> {
        let call = Call::Push { upload };
        self.note(&Line::Sent(now(), Request { id: None, call }))?;
        loop {
            let objects = stream::iter([object.clone()]);
            let result = match self.link.push(upload, objects, |_| {}).await {
                Ok(pushed) => Ok(Answer::Pushed {
                    objects: pushed.objects,
                    bytes: pushed.bytes,
                }),
                Err(LinkError::Refused(refusal)) => Err(refusal),
                Err(error) => {
                    self.failed(error).await?;
                    continue;
                }
            };
            return self.heard(Reply { at: None, result });
        }
    }

    /// The home's key, once it has answered.
    ///
    /// # Errors
    /// There is no connection.
    pub async fn home_key(&self) -> Result<[u8; 32]> {
        let soon = tokio::time::Instant::now() + Duration::from_secs(10);
        let connection = self.link.connected(soon).await?;
        Ok(*connection.home_key().as_bytes())
    }

    fn heard(&self, reply: Reply) -> Result<Reply, Over> {
        self.note(&Line::Answered(now(), reply.clone()))?;
        self.shared.learn(reply.at);
        match reply.result {
            Err(Refusal::InstanceFenced) => Err(Over::Fenced),
            _ => Ok(reply),
        }
    }

    async fn failed(&self, error: LinkError) -> Result<(), Over> {
        if let Some(greeting) = self.over.borrow().clone() {
            return Err(match greeting {
                Greeting::Fenced => Over::Fenced,
                Greeting::Refused(why) => self.broken(format!("Hello was refused: {why:?}")),
            });
        }
        match error {
            LinkError::Away => {
                sleep(PAUSE).await;
                Ok(())
            }
            other => Err(self.broken(format!("no answer: {other:?}"))),
        }
    }

    /// Writes down what must not happen.
    fn broken(&self, why: String) -> Over {
        match self.note(&Line::Broken(now(), why.clone())) {
            Ok(()) => Over::Broken(why),
            Err(worse) => worse,
        }
    }

    fn note(&self, line: &Line) -> Result<(), Over> {
        let written = self.shared.journal.write(line);
        written.map_err(|error| Over::Broken(error.to_string()))
    }
}

impl Shared {
    async fn hello(&self, connection: &Connection) -> Result<(), LinkError> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let nonce = self.nonce;
        let call = Call::Hello { nonce, seen };
        let reply = connection
            .call(&Request { id: None, call }, Class::Control)
            .await?;
        let line = match &reply.result {
            Ok(Answer::Hello { instance, .. }) => Line::Hello(now(), *instance),
            Ok(other) => Line::Broken(now(), format!("Hello was answered with {other:?}")),
            Err(Refusal::InstanceFenced) => Line::Fenced(now()),
            Err(other) => Line::Broken(now(), format!("Hello was refused: {other:?}")),
        };
        let written = self.journal.write(&line);
        written.map_err(|_| LinkError::Protocol("the journal cannot be written"))?;
        self.learn(reply.at);
        reply.result?;
        Ok(())
    }

    fn learn(&self, at: Option<Standing>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let position = |standing: &Option<Standing>| standing.map(|at| at.position);
        if position(&at) > position(&seen) {
            *seen = at;
        }
    }
}

/// A call as it is sent, under a new request id if it needs one.
///
/// # Errors
/// This machine gives no random bytes.
pub fn new_request(call: Call) -> Result<Request, Over> {
    let id = call.mutates().then(random).transpose();
    let id = id.map_err(|error| Over::Broken(error.to_string()))?;
    let id = id.map(RequestId::from_bytes);
    Ok(Request { id, call })
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    if getrandom::fill(&mut bytes).is_err() {
        bail!("this machine gives no random bytes");
    }
    Ok(bytes)
}
