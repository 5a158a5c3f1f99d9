//! A checkout of a device, and a home, for tests of what becomes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use img_lease::Terms;
use img_lease::holder::{Event as LeaseEvent, Granted};
use img_proto::{ImageRow, LeaseRow};
use img_records::{Commit, CommitKind, CommitPrivate, DescriptorPrivate, Maps, Parent};
use img_types::{
    CheckoutId, DeviceId, Epoch, ImageId, ImageName, Instance, LeaseMode, ObjectId, Seq, Token,
    WallMillis,
};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::branching::Onward;
use super::hydrate::Hydration;
use super::opening::{label, tree_config};
use super::run_id::RunIds;
use super::status::View;
use super::worker::{Beginning, Command, Worker};
use super::{Checkout, Shared, lock};
use crate::branch::BranchDraft;
use crate::commits::{OpenCommit, OpenDescriptor};
use crate::config::Checkpoints;
use crate::events::{Phase, Reporter};
use crate::images::{Image, Images};
use crate::keeper::Clock;
use crate::stream::fake::{CHECKOUT, Device, FakeHome, IMAGE};
use crate::tree::{ObjectSource, Tree};

/// Somebody else.
pub(super) const THIEF: DeviceId = DeviceId::from_bytes([0x66; 32]);

/// A device with a leased checkout of the image `vm`.
pub(crate) struct Scene {
    pub(crate) fake: FakeHome,
    pub(crate) device: Device,
    pub(super) shared: Arc<Shared>,
    folder: TempDir,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let fake = FakeHome::start().await;
        let folder = tempfile::tempdir().unwrap();
        let device = Device::enrol(&folder.path().join("state"), &fake, LeaseMode::Online).await;
        device.home.reachable().await;
        let shared = Arc::new(Shared {
            home: Arc::clone(&device.home),
            images: Images::new(Arc::clone(&device.home), device.state.clone()),
            state: device.state.clone(),
            pace: Checkpoints::default(),
            events: device.events.clone(),
            keeper: device.keeper.clone(),
            clock: Clock::new(),
            run_ids: RunIds::beside(&folder.path().join("imgd.sock")),
            open: Mutex::default(),
            opening: Mutex::default(),
            seen: Mutex::new(BTreeMap::new()),
            gone: Mutex::default(),
            searched: Mutex::default(),
            looks_later: AtomicBool::new(false),
        });
        Self {
            fake,
            device,
            shared,
            folder,
        }
    }

    /// The images of the home, for others than checkouts.
    pub(crate) fn images(&self) -> &Images {
        &self.shared.images
    }

    /// The image that is checked out, at its first commit, while somebody else has stolen it.
    pub(crate) fn stolen(&self) -> Image {
        let descriptor = DescriptorPrivate {
            name: "vm".into(),
            boundary: [7; 32],
            options: Vec::new(),
        };
        let home = &self.device.home;
        let descriptor = home.trusted(|trust| {
            let signed = trust.sign_descriptor(home.identity(), IMAGE, None, &descriptor);
            trust.open_descriptor(IMAGE, &signed.unwrap().to_bytes())
        });
        let head = self.commit(IMAGE, Seq(0), None);
        image(descriptor.unwrap(), head, THIEF, Epoch(2))
    }

    /// A branch of an image's head that is leased to the checkout.
    pub(crate) fn branch(&self, of: &Image, name: &str, by: DeviceId) -> Image {
        let parent = Parent {
            image: of.row.image,
            commit: of.head_id().unwrap(),
        };
        let name = ImageName::parse(name).unwrap();
        let draft = BranchDraft {
            checkout: CHECKOUT,
            ..BranchDraft::of(&of.descriptor, &name, of.head.as_ref().unwrap(), parent)
        };
        let home = &self.device.home;
        let mut branch = draft.sign(home).unwrap();
        // Whoever looks at an image that is listed takes its records as verified.
        branch.first.signed.record.device = by;
        let descriptor = branch.descriptor.to_bytes();
        let descriptor = home.trusted(|trust| trust.open_descriptor(branch.image(), &descriptor));
        image(descriptor.unwrap(), branch.first, home.device(), Epoch(1))
    }

    /// The same image, after somebody has stolen it and committed.
    pub(super) fn taken(&self, image: &Image) -> Image {
        let mut taken = image.clone();
        let parent = Parent {
            image: image.row.image,
            commit: image.head_id().unwrap(),
        };
        let head = self.commit(image.row.image, Seq(1), Some(parent));
        taken.row.head = Some(head.signed.to_bytes().into());
        taken.row.seq = Some(Seq(1));
        taken.row.epoch = Epoch(2);
        taken.row.lease = None;
        taken.head = Some(head);
        taken
    }

    /// What a checkout hears of a branch that continues an image.
    pub(super) fn onward(&self, from: ImageId, branch: &Image) -> Onward {
        let first = branch.head.clone().unwrap();
        let thief = first.record().device;
        let taken = thief != self.device.home.device();
        Onward {
            by: taken.then(|| (thief, Some("the talk is today".into()))),
            from,
            descriptor: branch.descriptor.clone(),
            granted: self.granted(&first),
            first,
        }
    }

    /// The checkout has gone on as a branch.
    pub(super) async fn goes_on(&self, branch: &Image) {
        let mut holder = self.device.keeper.holder(CHECKOUT).unwrap();
        let event = LeaseEvent::Branched {
            image: branch.row.image,
            granted: self.granted(branch.head.as_ref().unwrap()),
        };
        holder.apply(event).unwrap();
        let row = self.device.row();
        self.device.keeper.keep(label(&row), holder).await.unwrap();
    }

    /// Lists the checkout; what others want of it arrives here.
    pub(super) fn list(&self) -> mpsc::Receiver<Command> {
        let (commands, inbox) = mpsc::channel(16);
        let checkout = Checkout {
            shared: Arc::clone(&self.shared),
            id: CHECKOUT,
            image: IMAGE,
            name: "vm".into(),
            dir: self.mount(),
            opened: WallMillis(1),
            tree: None,
            reporter: Reporter::new(Phase::Mount),
            commands,
            view: watch::channel(View::default()).1,
            fetched_before: (0, 0),
            hydration: Hydration::default(),
        };
        lock(&self.shared.open).insert(CHECKOUT, Arc::new(checkout));
        inbox
    }

    /// The worker of the checkout, with an empty tree.
    pub(super) fn worker(&self) -> Worker {
        let image = self.stolen();
        let mut row = self.device.row();
        row.dir = self.mount();
        let dir = self.device.state.checkout_dir(CHECKOUT);
        std::fs::create_dir_all(&dir).unwrap();
        let config = tree_config(&row, &image.descriptor.boundary, None);
        let source = Arc::new(ObjectSource {
            objects: Arc::clone(self.device.home.objects()),
            checkout: CHECKOUT,
        });
        let tree = Tree::create(&dir, config, source, &Handle::current()).unwrap();
        let beginning = Beginning {
            shared: Arc::clone(&self.shared),
            row,
            descriptor: image.descriptor,
            tree: Some(tree),
            base: None,
            checkpoints: Vec::new(),
            wishes: Vec::new(),
            taken: None,
            reporter: Reporter::new(Phase::Mount),
            pending: false,
            application: None,
        };
        Worker::new(beginning).0
    }

    /// Where the checkout is mounted.
    pub(super) fn mount(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Has the device refuse to write down how far its checkouts are, or not any more.
    pub(super) fn refuse_stages(&self, refuse: bool) {
        let path = self.device.state.dir().join("device.db");
        let database = rusqlite::Connection::open(path).unwrap();
        let change = match refuse {
            true => {
                "CREATE TRIGGER fault BEFORE UPDATE OF stage ON checkouts BEGIN SELECT RAISE(FAIL, 'a fault on demand'); END"
            }
            false => "DROP TRIGGER fault",
        };
        database.execute_batch(change).unwrap();
    }

    fn commit(&self, image: ImageId, seq: Seq, parent: Option<Parent>) -> OpenCommit {
        let home = &self.device.home;
        let private = CommitPrivate {
            root_key: [1; 32],
            root_len: 1,
            message: String::new(),
            kind: CommitKind::Commit,
            maps: Maps::Exact,
            logical_bytes: 0,
            files: 0,
            sealed_bytes: 0,
            manifest: Vec::new(),
        };
        let signed = home.trusted(|trust| {
            let record = Commit {
                image,
                seq,
                parent,
                root: ObjectId::from_bytes([1; 32]),
                token: Some(self.device.token()),
                checkout: CheckoutId::from_bytes([0x11; 32]),
                device: home.device(),
                instance: Instance(1),
                roster: trust.roster.head(),
                key_epoch: trust.keys.newest(),
                clock: WallMillis(1),
                seen: None,
                sealed: Vec::new(),
            };
            trust.sign_commit(home.identity(), record, &private)
        });
        signed.unwrap()
    }

    fn granted(&self, first: &OpenCommit) -> Granted {
        Granted {
            token: Token {
                incarnation: self.device.home.seen().unwrap().incarnation,
                epoch: Epoch(1),
            },
            terms: Terms::usual(),
            head: Some(first.id),
            sent: self.shared.clock.now(),
            luck: 0,
        }
    }
}

fn image(descriptor: OpenDescriptor, head: OpenCommit, device: DeviceId, epoch: Epoch) -> Image {
    let lease = LeaseRow {
        device,
        checkout: CHECKOUT,
        epoch,
        mode: LeaseMode::Online,
        remaining_ms: 3_600_000,
        lapsed: false,
    };
    let row = ImageRow {
        image: head.record().image,
        descriptor: descriptor.signed.to_bytes().into(),
        head: Some(head.signed.to_bytes().into()),
        seq: Some(head.record().seq),
        epoch,
        lease: Some(lease),
        staged: Vec::new(),
        stored_bytes: 0,
    };
    Image {
        row,
        descriptor,
        head: Some(head),
    }
}
