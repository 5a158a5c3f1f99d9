//! Uploads and commits against a home on loopback.

use std::sync::Arc;

use img_lease::holder::Kind;
use img_records::{CommitKind, Maps};
use img_seal::{Reference, Sealed, Sealer};
use img_store::Keep;
use img_types::object::ObjectKind;
use img_types::{LeaseMode, ObjectId};
use tempfile::TempDir;

use super::fake::{CHECKOUT, Device, FakeHome, IMAGE};
use super::*;
use crate::events::{Phase, Reporter};

struct Scene {
    fake: FakeHome,
    device: Device,
    dir: TempDir,
    reporter: Reporter,
}

impl Scene {
    async fn new() -> Self {
        let fake = FakeHome::start().await;
        let dir = tempfile::tempdir().unwrap();
        let device = Device::enrol(dir.path(), &fake, LeaseMode::Online).await;
        Self {
            fake,
            device,
            dir,
            reporter: Reporter::new(Phase::Push),
        }
    }

    fn uploader(&self) -> Uploader {
        let (home, state) = (Arc::clone(&self.device.home), self.device.state.clone());
        Uploader::new(home, state, self.device.keeper.clone(), CHECKOUT)
    }

    fn sealer(&self) -> Sealer {
        let ring = self.device.home.objects().keyring();
        let epoch = ring.newest();
        Sealer::new(ring.content(epoch).unwrap().clone(), epoch)
    }

    /// Seals blocks under one leaf into the outbox, and returns the leaf.
    fn seal(&self, salt: u8, blocks: usize) -> Reference {
        let mut sealer = self.sealer();
        let mut children = Vec::new();
        for n in 0..blocks {
            let sealed = sealer.seal(ObjectKind::Block, &content(salt, n)).unwrap();
            children.push(sealed.reference.id);
            self.keep(&sealed);
        }
        let root = sealer
            .seal_with_children(ObjectKind::Node, 0, children, &[salt; 300])
            .unwrap();
        self.keep(&root);
        self.device.home.objects().sync().unwrap();
        root.reference
    }

    fn keep(&self, sealed: &Sealed) {
        let objects = self.device.home.objects();
        objects.keep(sealed, Keep::Outbox(CHECKOUT)).unwrap();
    }

    fn outbox(&self) -> Vec<ObjectId> {
        self.device.home.objects().outbox(CHECKOUT)
    }

    fn draft(&self, root: Reference, base: Option<&Settled>) -> Draft {
        Draft {
            image: IMAGE,
            checkout: CHECKOUT,
            token: self.device.token(),
            base: base.map(|settled| settled.commit.clone()),
            root,
            message: "a test".into(),
            kind: CommitKind::Commit,
            maps: Maps::Exact,
            logical_bytes: 1,
            files: 1,
            sealed_bytes: 10_000,
        }
    }

    async fn commit(&self, draft: &Draft) -> Result<Settled, UploadError> {
        self.uploader()
            .commit(draft, 1, Vec::new(), &self.reporter)
            .await
    }

    fn pending(&self) -> Option<PendingCommit> {
        let state = &self.device.state;
        state.now(|db| db.pending_commit(CHECKOUT)).unwrap()
    }

    /// Ends the daemon and starts another over the same folder.
    async fn restart(self) -> Self {
        let Self {
            fake, device, dir, ..
        } = self;
        let mut keeper = device.keeper.watch();
        drop(device);
        // The task that kept the leases ends with the last handle, and lets go of the folder.
        while keeper.changed().await.is_ok() {}
        while crate::state::State::open(dir.path()).is_err() {
            tokio::task::yield_now().await;
        }
        Self {
            device: Device::boot(dir.path(), 2).await,
            fake,
            dir,
            reporter: Reporter::new(Phase::Push),
        }
    }
}

fn content(salt: u8, n: usize) -> Vec<u8> {
    img_testkit::bytes(u64::from(salt) << 32 | n as u64, 2_000)
}

#[tokio::test]
async fn an_outbox_becomes_a_commit_and_is_trimmed() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 10);
    let settled = scene.commit(&scene.draft(root, None)).await.unwrap();
    assert_eq!(settled.sent.objects, 11);
    let head = scene.fake.lock().head().unwrap();
    assert_eq!(head.commit, settled.commit.id);
    assert_eq!(
        scene.fake.lock().arrived.last(),
        Some(&root.id),
        "children first"
    );
    assert_eq!(scene.outbox(), []);
    assert_eq!(scene.pending(), None);
    let row = scene.device.row();
    assert_eq!(row.base, Some(settled.commit.signed.to_bytes()));
    assert_eq!(row.sent_bytes, settled.sent.bytes);
    let holder = scene.device.keeper.holder(CHECKOUT).unwrap();
    assert_eq!(holder.base(), Some(settled.commit.id));

    // The next one sends only what is new, whatever else is in the outbox.
    let unrelated = scene.seal(3, 5);
    let next = scene.seal(1, 12);
    let second = scene
        .commit(&scene.draft(next, Some(&settled)))
        .await
        .unwrap();
    assert_eq!(second.sent.objects, 3, "two blocks and their leaf");
    assert_eq!(second.commit.record().seq.0, 1);
    assert_eq!(scene.outbox().len(), 6);
    let uploader = scene.uploader();
    assert_eq!(uploader.unneeded(vec![unrelated.id]).await.unwrap(), []);
    assert_eq!(uploader.unneeded(vec![]).await.unwrap(), scene.outbox());
}

#[tokio::test]
async fn a_record_is_written_down_before_it_is_first_sent() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 3);
    let state = scene.device.state.clone();
    scene.fake.lock().witness = Some(Box::new(move |record| {
        let pending = state.now(|db| db.pending_commit(CHECKOUT)).unwrap();
        assert_eq!(pending.unwrap().record, record);
    }));
    scene.commit(&scene.draft(root, None)).await.unwrap();
    assert_eq!(scene.fake.lock().calls.last(), Some(&"commit"));
}

#[tokio::test]
async fn the_reporter_follows_from_push_to_commit() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 3);
    let sent = scene
        .uploader()
        .stream(root.id, &scene.reporter)
        .await
        .unwrap();
    let progress = scene.reporter.now();
    assert_eq!(
        (progress.phase, progress.done_bytes),
        (Phase::Push, sent.bytes)
    );
    scene.commit(&scene.draft(root, None)).await.unwrap();
    let progress = scene.reporter.now();
    assert_eq!((progress.phase, progress.waits_for), (Phase::Commit, None));
}

#[tokio::test]
async fn a_lost_connection_costs_only_what_was_not_acknowledged() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 40);
    scene.fake.lock().hang_up_after = Some(17);
    let settled = scene.commit(&scene.draft(root, None)).await.unwrap();
    let inner = scene.fake.lock();
    assert_eq!(inner.head().unwrap().commit, settled.commit.id);
    assert_eq!(inner.objects.len(), 41);
    assert_eq!(
        inner.arrived.len(),
        41,
        "what had arrived was found present or acknowledged: {}",
        inner.arrived.len()
    );
    assert_eq!(
        inner.calls.iter().filter(|call| **call == "open").count(),
        2
    );
}

#[tokio::test]
async fn an_ended_session_is_opened_anew() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 5);
    scene.fake.lock().end_session = true;
    scene.commit(&scene.draft(root, None)).await.unwrap();
    assert_eq!(
        scene.fake.lock().calls,
        ["open", "missing", "open", "missing", "commit"]
    );
}

#[tokio::test]
async fn what_the_home_lacks_after_all_is_pushed_again() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 5);
    let swindled = scene.outbox()[0];
    scene.fake.lock().pretends.insert(swindled);
    let fake = scene.fake.clone();
    let commit = async {
        let draft = scene.draft(root, None);
        scene.commit(&draft).await
    };
    let honest = async {
        // The home notices when it looks whether the commit is complete.
        loop {
            {
                let mut inner = fake.lock();
                if inner.calls.contains(&"commit") {
                    inner.pretends.clear();
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let (settled, ()) = tokio::join!(commit, honest);
    settled.unwrap();
    assert_eq!(scene.fake.lock().objects.len(), 6);
}

#[tokio::test]
async fn a_commit_whose_receipt_was_lost_is_sent_again_and_applied_once() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 3);
    scene.fake.lock().lose_receipt = true;
    let settled = scene.commit(&scene.draft(root, None)).await.unwrap();
    let inner = scene.fake.lock();
    assert_eq!(inner.commits.len(), 1);
    assert_eq!(inner.head().unwrap().seq.0, 0);
    assert_eq!(inner.head().unwrap().commit, settled.commit.id);
    let sent = inner.calls.iter().filter(|call| **call == "commit").count();
    assert_eq!(sent, 2);
}

#[tokio::test]
async fn a_restarted_daemon_finishes_the_commit_that_it_had_written_down() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 3);
    let draft = scene.draft(root, None);
    let signed = draft.sign(&scene.device.home).unwrap();
    let pending = PendingCommit {
        checkout: CHECKOUT,
        record: signed.signed.to_bytes(),
        generation: 7,
    };
    scene
        .device
        .state
        .now(|db| db.set_pending_commit(&pending, &[]))
        .unwrap();

    let scene = scene.restart().await;
    let uploader = scene.uploader();
    let (generation, settled) = uploader.resume(&scene.reporter).await.unwrap().unwrap();
    assert_eq!(generation, 7);
    assert_eq!(settled.commit.id, signed.id, "the very same record");
    assert_eq!(settled.sent.objects, 4);
    assert_eq!(scene.outbox(), []);
    assert_eq!(scene.pending(), None);
    let again = uploader.resume(&scene.reporter).await.unwrap();
    assert!(again.is_none());

    // Killed between the receipt and the last line of the journal: the same record, the same receipt.
    scene
        .device
        .state
        .now(|db| db.set_pending_commit(&pending, &[]))
        .unwrap();
    let (_, settled) = uploader.resume(&scene.reporter).await.unwrap().unwrap();
    assert_eq!((settled.commit.id, settled.sent.objects), (signed.id, 0));
    assert_eq!(scene.fake.lock().commits.len(), 1);
}

#[tokio::test]
async fn a_record_that_is_refused_every_time_is_in_nobodys_way() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 3);
    for (refusal, stays) in [
        (Refusal::NoRoom("its disk is full".into()), true),
        (Refusal::InstanceFenced, true),
        (Refusal::OverLimit("its message is too long".into()), false),
        (Refusal::BadRecord("its parent is itself".into()), false),
    ] {
        scene.fake.lock().refuse_commit = Some(refusal.clone());
        let outcome = scene.commit(&scene.draft(root, None)).await;
        let refused = UploadError::Call(CallError::Refused(refusal));
        assert_eq!(outcome.unwrap_err().to_string(), refused.to_string());
        assert_eq!(scene.pending().is_some(), stays, "{refused}");
    }
    assert_eq!(scene.outbox().len(), 4);
}

#[tokio::test]
async fn a_superseded_token_makes_an_orphan_whose_work_stays() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 3);
    let draft = scene.draft(root, None);
    scene.fake.lock().steal();
    // The fake home knows connections by the holder's device; the record names the loser's.
    let outcome = scene.commit(&draft).await;
    assert!(
        matches!(outcome, Err(UploadError::Superseded)),
        "{outcome:?}"
    );
    let holder = scene.device.keeper.holder(CHECKOUT).unwrap();
    assert_eq!(holder.kind(), Kind::Orphan);
    assert_eq!(scene.pending(), None);
    assert_eq!(scene.outbox().len(), 4);
    let kept = crate::keeper::decode(&scene.device.row().holder.unwrap()).unwrap();
    assert_eq!(kept, holder);
}

#[tokio::test]
async fn a_record_of_a_token_that_was_given_back_is_struck_out() {
    let scene = Scene::new().await;
    let root = scene.seal(1, 3);
    let signed = scene.draft(root, None).sign(&scene.device.home).unwrap();
    let pending = PendingCommit {
        checkout: CHECKOUT,
        record: signed.signed.to_bytes(),
        generation: 1,
    };
    let state = &scene.device.state;
    state
        .now(|db| db.set_pending_commit(&pending, &[]))
        .unwrap();
    scene.fake.lock().steal();
    let keeper = &scene.device.keeper;
    let given_back = holder::Event::GivenBack;
    keeper.apply(CHECKOUT, given_back).await.unwrap();
    let resumed = scene.uploader().resume(&scene.reporter).await.unwrap();
    assert!(resumed.is_none());
    assert_eq!(scene.pending(), None);
    assert_eq!(keeper.holder(CHECKOUT).unwrap().kind(), Kind::ReadOnly);
    assert_eq!(scene.outbox().len(), 4);
}

#[tokio::test]
async fn an_object_that_the_outbox_lost_is_named() {
    let scene = Scene::new().await;
    let mut sealer = scene.sealer();
    let block = sealer.seal(ObjectKind::Block, &content(1, 1)).unwrap();
    let root = sealer
        .seal_with_children(ObjectKind::Node, 0, vec![block.reference.id], &[1; 300])
        .unwrap();
    scene.keep(&root);
    let outcome = scene.commit(&scene.draft(root.reference, None)).await;
    // The home names it, and nobody has it.
    let id = block.reference.id;
    assert!(
        matches!(outcome, Err(UploadError::Lost(Lost(lost))) if lost == id),
        "{outcome:?}"
    );
    assert_eq!(scene.fake.lock().head(), None);
    assert!(scene.pending().is_none(), "another may be made without it");
}

#[tokio::test]
async fn an_import_goes_straight_home_across_a_lost_connection() {
    let scene = Scene::new().await;
    let mut sealer = scene.sealer();
    let home = Arc::clone(&scene.device.home);
    let upload = ImportUpload::begin(home, CHECKOUT, scene.reporter.clone());
    scene.fake.lock().hang_up_after = Some(33);
    let mut ids = Vec::new();
    for n in 0..100 {
        // Every tenth is one that came before.
        let sealed = sealer
            .seal(
                ObjectKind::Block,
                &content(9, if n % 10 == 9 { 0 } else { n }),
            )
            .unwrap();
        ids.push(sealed.reference.id);
        upload.put_async(sealed).await.unwrap();
    }
    let sent = upload.finish().await.unwrap();
    let inner = scene.fake.lock();
    assert!(ids.iter().all(|id| inner.objects.contains_key(id)));
    assert_eq!(inner.objects.len(), 90);
    assert!(sent.objects <= 90);
    assert_eq!(scene.outbox(), [], "an import needs no outbox");
}
