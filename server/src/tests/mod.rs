//! The home as a device meets it: real QUIC on the loopback, a real database, real files.

mod audit;
mod backup;
mod bounds;
mod branches;
mod changes;
mod crash;
mod devices;
mod enrolment;
mod flow;
mod groups;
mod leases;
mod papers;
mod rules;
mod tree;

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use img_net::{Connection, Link, LinkConfig, LinkError, TlsIdentity};
use img_proto::{Answer, Call, Class, Refusal, Reply, Request, Standing};
use img_records::{FoundingInvite, Roster};
use img_types::{DaemonNonce, HomeId, ObjectId, RequestId, UploadId};
use tempfile::TempDir;

use crate::{Address, Folder, Places, Running};
use papers::Device;

/// A home in a folder of its own that can be stopped and started again.
struct TestHome {
    _dir: TempDir,
    path: PathBuf,
    invite: FoundingInvite,
    /// From the next start on.
    max_stored: Option<u64>,
    running: Option<Running>,
}

impl TestHome {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home");
        let invite = crate::init(&path, None, "test", "127.0.0.1:1")
            .await
            .unwrap();
        let mut home = Self {
            _dir: dir,
            path,
            invite,
            max_stored: None,
            running: None,
        };
        home.resume().await;
        home
    }

    /// A founded home, and its founder's connection after Hello.
    async fn founded() -> (Self, Client) {
        let home = Self::start().await;
        let mut founder = home.connect(&Device::new(1)).await;
        founder.found(home.invite.secret).await.unwrap();
        founder.hello(None).await.unwrap();
        (home, founder)
    }

    fn places(&self) -> Places {
        let folder = Folder::open(&self.path).unwrap();
        Places {
            database: Address::file(&folder.database()),
            objects: folder.objects(),
            max_stored: self.max_stored,
            folder,
        }
    }

    async fn resume(&mut self) {
        let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let running = Running::start(&self.places(), listen).await.unwrap();
        self.running = Some(running);
    }

    async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.resume().await;
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn advance_clock(&self, ms: u64) {
        self.running().home.db.writer().advance_clock(ms);
    }

    fn standing(&self) -> Standing {
        self.running().home.standing()
    }

    fn roster(&self) -> Roster {
        Roster::clone(&self.running().home.roster().unwrap())
    }

    async fn connect(&self, device: &Device) -> Client {
        let address = self.running().address().to_string();
        let identity = TlsIdentity::from_seed(&device.tls);
        let hash = self.invite.home_key_hash;
        let connection = img_net::connect(&address, hash, &identity).await.unwrap();
        Client {
            device: device.clone(),
            connection,
            link: LinkConfig {
                address,
                home_key_hash: hash,
                identity,
            },
            home: None,
        }
    }

    /// Connects a device that is on the roster, and says Hello.
    async fn member(&self, device: &Device) -> Client {
        let mut client = self.connect(device).await;
        client.home = Some(self.roster().home());
        client.hello(None).await.unwrap();
        client
    }

    /// Puts a second device on the roster and connects it.
    async fn second(&self, admin: &Client) -> Client {
        let device = Device::new(2);
        let entry = admin.device.add(&self.roster(), &device);
        admin.call(Call::RosterAppend { entry }).await.unwrap();
        self.member(&device).await
    }
}

/// A device's conversation with the home.
struct Client {
    device: Device,
    connection: Connection,
    link: LinkConfig,
    home: Option<HomeId>,
}

impl Client {
    fn home(&self) -> HomeId {
        self.home.unwrap()
    }

    async fn reply(&self, request: Request) -> Result<Reply, LinkError> {
        self.connection.call(&request, Class::Control).await
    }

    /// Makes a call under a new request id.
    async fn call(&self, call: Call) -> Result<Answer, Refusal> {
        self.call_as(RequestId::from_bytes(crate::random().unwrap()), call)
            .await
    }

    async fn call_as(&self, id: RequestId, call: Call) -> Result<Answer, Refusal> {
        let id = Some(id);
        let reply = self.reply(Request { id, call }).await.unwrap();
        reply.result
    }

    async fn found(&mut self, secret: [u8; 16]) -> Result<Answer, Refusal> {
        let genesis = self.device.genesis();
        self.home = Some(Roster::found(&genesis).unwrap().home());
        let genesis = genesis.to_bytes().into();
        self.call(Call::Found { secret, genesis }).await
    }

    async fn hello(&self, seen: Option<Standing>) -> Result<Answer, Refusal> {
        self.hello_as(self.device.nonce, seen).await
    }

    async fn hello_as(
        &self,
        nonce: DaemonNonce,
        seen: Option<Standing>,
    ) -> Result<Answer, Refusal> {
        self.call(Call::Hello { nonce, seen }).await
    }

    async fn open_upload(&self) -> UploadId {
        let checkout = self.device.checkout;
        match self.call(Call::OpenUpload { checkout }).await {
            Ok(Answer::Upload { upload }) => upload,
            other => panic!("{other:?}"),
        }
    }

    /// Opens the upload session and sends objects in this order.
    async fn push(&self, objects: &[Bytes]) -> Result<u64, LinkError> {
        let upload = self.open_upload().await;
        self.push_to(upload, objects).await
    }

    async fn push_to(&self, upload: UploadId, objects: &[Bytes]) -> Result<u64, LinkError> {
        let objects = stream::iter(objects.to_vec());
        let pushed = self.connection.push(upload, objects, |_| {}).await?;
        Ok(pushed.objects)
    }

    /// Fetches over a link of its own, which is how a device fetches.
    async fn fetch(&self, ids: &[ObjectId]) -> Vec<Option<Bytes>> {
        let nonce = self.device.nonce;
        let link = Link::new(self.link.clone(), move |connection| async move {
            let hello = Request {
                id: None,
                call: Call::Hello { nonce, seen: None },
            };
            connection.call(&hello, Class::Control).await?;
            Ok(())
        });
        let fetched = link.fetch(ids.to_vec(), Class::Demand);
        let fetched: Vec<_> = fetched.collect().await;
        let objects = fetched.into_iter().map(|item| item.unwrap().1);
        objects.collect()
    }
}
