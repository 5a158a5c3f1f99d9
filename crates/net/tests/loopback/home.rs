//! A home without a database: it keeps objects in memory and answers over a real socket. It runs in a
//! runtime of its own, so that it can be killed without a word to its devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use img_net::{Peer, RequestStream, Server, StreamError, TlsIdentity, key_hash};
use img_proto::frame::REQUEST_LEN_MAX;
use img_proto::{Answer, Call, Refusal, Reply};
use img_types::limits::JOIN_FRAME_LEN_MAX;
use img_types::object::Parsed;
use img_types::{Instance, ObjectId};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What a home keeps, and how it behaves.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) objects: Mutex<BTreeMap<ObjectId, Bytes>>,
    pub(crate) members: Mutex<BTreeSet<[u8; 32]>>,
    pub(crate) hellos: AtomicUsize,
    /// Connections that a push cuts, each after this many objects.
    pub(crate) cuts: Mutex<Vec<usize>>,
    /// A push is refused after this many objects.
    pub(crate) refuse_push_after: Option<usize>,
    /// Fetches wait until this is true.
    pub(crate) serving: Option<watch::Receiver<bool>>,
    /// Exporters, remote keys and refused messages that the home saw.
    pub(crate) seen: Mutex<Vec<Seen>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Peer { key: [u8; 32], exporter: [u8; 32] },
    Ended,
    Bad(StreamError),
}

pub(crate) struct Home {
    pub(crate) address: SocketAddr,
    pub(crate) key_hash: [u8; 32],
    pub(crate) shelf: Arc<Shelf>,
    server: Arc<Server>,
    runtime: Option<Runtime>,
}

impl Home {
    pub(crate) fn start(shelf: Arc<Shelf>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), shelf)
    }

    pub(crate) fn start_at(address: SocketAddr, shelf: Arc<Shelf>) -> Self {
        let identity = TlsIdentity::from_seed(&[42; 32]);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let server = Arc::new(Server::bind(address, &identity).unwrap());
        drop(entered);
        let address = server.local_address().unwrap();
        runtime.spawn(accept(Arc::clone(&server), Arc::clone(&shelf)));
        Self {
            address,
            key_hash: key_hash(&identity.public_key()),
            shelf,
            server,
            runtime: Some(runtime),
        }
    }

    /// Ends like `kill -9`: no connection is closed.
    pub(crate) fn kill(mut self) -> (SocketAddr, Arc<Shelf>) {
        let runtime = self.runtime.take().unwrap();
        let (address, shelf) = (self.address, Arc::clone(&self.shelf));
        std::thread::spawn(move || {
            runtime.shutdown_timeout(Duration::from_secs(5));
            drop(self);
        })
        .join()
        .unwrap();
        (address, shelf)
    }

    pub(crate) async fn close(&self) {
        self.server.close().await;
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(server: Arc<Server>, shelf: Arc<Shelf>) {
    while let Some(arriving) = server.accept().await {
        let shelf = Arc::clone(&shelf);
        tokio::spawn(async move {
            if let Ok(peer) = arriving.establish().await {
                shelf.seen.lock().unwrap().push(Seen::Peer {
                    key: peer.key(),
                    exporter: peer.exporter(),
                });
                serve(&peer, &shelf).await;
                shelf.seen.lock().unwrap().push(Seen::Ended);
            }
        });
    }
}

async fn serve(peer: &Peer, shelf: &Arc<Shelf>) {
    while let Ok(stream) = peer.accept().await {
        let (peer, shelf) = (peer.clone(), Arc::clone(shelf));
        tokio::spawn(async move {
            if let Err(error) = answer(&peer, stream, &shelf).await {
                shelf.seen.lock().unwrap().push(Seen::Bad(error));
            }
        });
    }
}

async fn answer(peer: &Peer, mut stream: RequestStream, shelf: &Shelf) -> Result<(), StreamError> {
    let is_member = shelf.members.lock().unwrap().contains(&peer.key());
    let max = if is_member {
        REQUEST_LEN_MAX
    } else {
        JOIN_FRAME_LEN_MAX
    };
    let request = stream.read_request(max).await?;
    if !is_member {
        return stream.reply(&refusal(Refusal::NotMember)).await;
    }
    match request.call {
        Call::Hello { .. } => {
            peer.admit();
            shelf.hellos.fetch_add(1, Ordering::SeqCst);
            let instance = Instance(1);
            let hello = Answer::Hello {
                instance,
                at_seen: None,
            };
            stream.reply(&done(hello)).await
        }
        Call::Fetch { ids, class } => {
            if let Some(mut serving) = shelf.serving.clone() {
                let _ = serving.wait_for(|serving| *serving).await;
            }
            stream.set_class(class);
            stream.reply(&done(Answer::Objects)).await?;
            for id in ids {
                let object = shelf.objects.lock().unwrap().get(&id).cloned();
                stream.send_object(object).await?;
            }
            stream.finish();
            Ok(())
        }
        Call::Push { .. } => take_push(peer, stream, shelf).await,
        Call::Images { .. } => {
            let images = Answer::Images {
                images: vec![],
                more: false,
            };
            stream.reply(&done(images)).await
        }
        _ => stream.reply(&refusal(Refusal::Busy)).await,
    }
}

async fn take_push(peer: &Peer, stream: RequestStream, shelf: &Shelf) -> Result<(), StreamError> {
    let (mut uploads, mut replies) = stream.split();
    let (mut objects, mut bytes) = (0, 0);
    let cut = shelf.cuts.lock().unwrap().pop();
    while let Some(object) = uploads.next().await? {
        if shelf.refuse_push_after == Some(objects as usize) {
            return replies.reply(&refusal(Refusal::SessionClosed)).await;
        }
        objects += 1;
        bytes += object.len() as u64;
        let id = Parsed::decode(&object).unwrap().id();
        shelf.objects.lock().unwrap().insert(id, object);
        if objects % 8 == 0 {
            replies
                .reply(&done(Answer::Pushed { objects, bytes }))
                .await?;
        }
        if cut == Some(objects as usize) {
            peer.close("cut");
            return Ok(());
        }
    }
    replies
        .reply(&done(Answer::Pushed { objects, bytes }))
        .await?;
    replies.finish();
    Ok(())
}

pub(crate) fn done(answer: Answer) -> Reply {
    Reply {
        at: None,
        result: Ok(answer),
    }
}

fn refusal(refusal: Refusal) -> Reply {
    Reply {
        at: None,
        result: Err(refusal),
    }
}
