//! Connections: who may have how many, what a stranger may do, and when one is ended.

mod strangers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use img_net::{Arriving, Peer, Server};
use img_types::DeviceId;
use img_types::limits::{CONNECTIONS_PER_DEVICE_MAX, JOIN_LIFE_MAX};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::calls::{self, Session};
use crate::home::Home;
use strangers::{Strangers, StrangersPlace};

/// All connections of a home.
#[derive(Debug)]
pub(crate) struct Connections {
    home: Arc<Home>,
    strangers: Arc<Strangers>,
    members: Mutex<BTreeMap<DeviceId, VecDeque<Peer>>>,
}

impl Connections {
    pub(crate) fn new(home: Arc<Home>) -> Arc<Self> {
        Arc::new(Self {
            home,
            strangers: Arc::default(),
            members: Mutex::default(),
        })
    }

    /// Serves everybody who connects until the server is closed, then waits for their tasks.
    pub(crate) async fn accept(self: Arc<Self>, server: &Server) {
        let mut tasks = JoinSet::new();
        let mut numbers = 1..;
        loop {
            tokio::select! {
                arriving = server.accept() => match arriving.zip(numbers.next()) {
                    Some((arriving, number)) => {
                        tasks.spawn(Arc::clone(&self).serve(arriving, number));
                    }
                    None => break,
                },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn serve(self: Arc<Self>, arriving: Arriving, number: u64) {
        let peer = match arriving.establish().await {
            Ok(peer) => peer,
            Err(error) => {
                tracing::debug!(%error, "a handshake failed");
                return;
            }
        };
        let session = Arc::new(Session::new(peer.key(), peer.exporter(), number));
        let mut place = match self.place(&peer, &session, None) {
            Ok(place) => Some(place),
            Err(why) => return peer.close(why),
        };
        let mut roster = self.home.roster_changes();
        let mut requests = JoinSet::new();
        let began = Instant::now();
        let mut idle_since = began;
        loop {
            let stranger = matches!(place, Some(Place::Stranger(_)));
            let until = patience(&session, began, idle_since, requests.is_empty());
            tokio::select! {
                stream = peer.accept() => {
                    let Ok(stream) = stream else { break };
                    idle_since = Instant::now();
                    let (home, session) = (Arc::clone(&self.home), Arc::clone(&session));
                    requests.spawn(async move {
                        if let Err(error) = calls::serve(home, session, stream).await {
                            tracing::debug!(%error, "a request was not finished");
                        }
                    });
                }
                Some(_) = requests.join_next(), if !requests.is_empty() => {
                    idle_since = Instant::now();
                }
                changed = roster.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    place = match self.place(&peer, &session, place.take()) {
                        Ok(place) => Some(place),
                        Err(why) => {
                            peer.close(why);
                            break;
                        }
                    };
                }
                () = tokio::time::sleep_until(until), if stranger && !session.recovering() => {
                    if patience(&session, began, idle_since, requests.is_empty()) > until {
                        continue;
                    }
                    peer.close("strangers may not stay");
                    break;
                }
            }
        }
        if let Some(Place::Member(device)) = place {
            self.leave(&peer, device);
        }
        // Dropping the requests ends what waits; what the writer has taken goes on.
    }

    /// Gives a peer the place of a member or a stranger, after what it had before.
    fn place(
        &self,
        peer: &Peer,
        session: &Session,
        before: Option<Place>,
    ) -> Result<Place, &'static str> {
        match (session.device(&self.home), before) {
            (Ok(device), Some(Place::Member(known))) if known == device => {
                Ok(Place::Member(device))
            }
            (Ok(device), _) => {
                peer.admit();
                self.join(device, peer);
                Ok(Place::Member(device))
            }
            (Err(_), Some(Place::Member(device))) => {
                self.leave(peer, device);
                Err("this device is not on the roster any more")
            }
            (Err(_), Some(stranger)) => Ok(stranger),
            (Err(_), None) => self
                .strangers
                .enter(peer.address())
                .map(Place::Stranger)
                .ok_or("too many strangers"),
        }
    }

    /// Adds a member's connection. The oldest one makes room: it may be dead without anybody
    /// knowing it yet.
    fn join(&self, device: DeviceId, peer: &Peer) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let peers = members.entry(device).or_default();
        peers.push_back(peer.clone());
        if peers.len() > CONNECTIONS_PER_DEVICE_MAX
            && let Some(oldest) = peers.pop_front()
        {
            oldest.close("too many connections of this device");
        }
    }

    fn leave(&self, peer: &Peer, device: DeviceId) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peers) = members.get_mut(&device) {
            peers.retain(|other| !other.is_same_connection(peer));
            if peers.is_empty() {
                members.remove(&device);
            }
        }
    }
}

/// Until when a stranger may stay. Whoever named a registered invite waits for a person, and may stay as
/// long as it keeps asking and reads the answers; anybody else has one short life, however busy.
fn patience(session: &Session, began: Instant, idle_since: Instant, idle: bool) -> Instant {
    match (session.invited(), idle) {
        (false, _) => began + JOIN_LIFE_MAX,
        (true, true) => idle_since + JOIN_LIFE_MAX,
        (true, false) => idle_since + JOIN_LIFE_MAX + calls::WAIT_MAX,
    }
}

/// What a connection counts as.
#[derive(Debug)]
enum Place {
    Member(DeviceId),
    Stranger(#[allow(dead_code, reason = "held for its room")] StrangersPlace),
}
