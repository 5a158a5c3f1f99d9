//! From an empty home to an image that another device reads: create, push, commit, fetch.

use futures_util::future::join_all;
use img_proto::{Answer, Call, LeaseTerms, Refusal};
use img_records::SignedReceipt;
use img_types::bytes::Reader;
use img_types::object::{ObjectKind, Parsed, Step};
use img_types::{CommitId, ImageId, LeaseMode, ObjectId, RequestId, Seq, Token};

use super::papers::{Draft, id_of};
use super::tree::{Tree, node, sealed, tree};
use super::{Client, TestHome};

pub(super) const TERMS: LeaseTerms = LeaseTerms {
    ttl_ms: 600_000,
    mode: LeaseMode::Online,
};

/// Creates an image and returns its first token.
pub(super) async fn create(client: &Client, image: ImageId, name: u8) -> Token {
    let descriptor = client.device.descriptor(client.home(), image, name);
    let create = Call::CreateImage {
        descriptor: descriptor.to_bytes().into(),
        checkout: client.device.checkout,
        terms: TERMS,
    };
    match client.call(create).await {
        Ok(Answer::Granted { token, .. }) => token,
        other => panic!("{other:?}"),
    }
}

/// Pushes a tree and commits it.
pub(super) async fn commit(
    home: &TestHome,
    client: &Client,
    draft: &Draft,
    tree: &Tree,
) -> Result<CommitId, Refusal> {
    let call = |commit| Call::Commit { commit };
    propose(home, client, draft, tree, call).await
}

/// Pushes a tree and stages it.
pub(super) async fn stage(
    home: &TestHome,
    client: &Client,
    draft: &Draft,
    tree: &Tree,
) -> Result<CommitId, Refusal> {
    let call = |commit| Call::Stage { commit };
    propose(home, client, draft, tree, call).await
}

async fn propose(
    home: &TestHome,
    client: &Client,
    draft: &Draft,
    tree: &Tree,
    call: impl FnOnce(bytes::Bytes) -> Call,
) -> Result<CommitId, Refusal> {
    client.push(&tree.objects).await.unwrap();
    let signed = client.device.commit(&home.roster(), draft);
    client.call(call(signed.to_bytes().into())).await?;
    Ok(id_of(&signed, client.home()))
}

/// An image with one commit.
pub(super) async fn image(home: &TestHome, client: &Client, name: u8) -> (Draft, CommitId, Token) {
    let image = ImageId::from_bytes([name; 32]);
    let token = create(client, image, name).await;
    let tree = tree(u64::from(name), 2, 3);
    let draft = Draft::first(image, tree.root, token);
    let commit = commit(home, client, &draft, &tree).await.unwrap();
    (draft, commit, token)
}

#[tokio::test]
async fn what_was_committed_is_fetched_by_another_device() {
    let (home, founder) = TestHome::founded().await;
    let image = ImageId::from_bytes([1; 32]);
    let token = create(&founder, image, 1).await;
    // Not listed before its first commit.
    let listed = founder.call(Call::Images { after: None }).await;
    assert_eq!(
        listed,
        Ok(Answer::Images {
            images: Vec::new(),
            more: false
        })
    );

    let tree = tree(1, 3, 40);
    let upload = founder.open_upload().await;
    assert_eq!(missing(&founder, upload, &tree.ids).await, tree.ids.len());
    let pushed = founder.push_to(upload, &tree.objects).await;
    assert_eq!(pushed, Ok(tree.objects.len() as u64));
    assert_eq!(missing(&founder, upload, &tree.ids).await, 0);

    let draft = Draft::first(image, tree.root, token);
    let signed = founder.device.commit(&home.roster(), &draft);
    let commit = Call::Commit {
        commit: signed.to_bytes().into(),
    };
    let Ok(Answer::Committed { receipt }) = founder.call(commit.clone()).await else {
        panic!("no receipt");
    };
    let told = SignedReceipt::decode(&receipt).unwrap();
    let home_key = founder.connection.home_key();
    told.verify(&founder.home(), home_key.as_bytes()).unwrap();
    let standing = home.standing();
    assert_eq!(told.record.position, standing.position);
    assert_eq!(told.record.log_root, standing.root);
    assert_eq!(told.record.commit, id_of(&signed, founder.home()));
    // Sent again under another request id, it is the same commit with the same receipt.
    let again = founder.call(commit).await;
    assert_eq!(again, Ok(Answer::Committed { receipt }));
    assert_eq!(home.standing(), standing);

    let second = home.second(&founder).await;
    let Ok(Answer::Images { images, .. }) = second.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    assert_eq!((images.len(), images[0].image), (1, image));
    assert_eq!(images[0].head.as_deref(), Some(&signed.to_bytes()[..]));
    let total: usize = tree.objects.iter().map(|object| object.len()).sum();
    assert_eq!(images[0].stored_bytes, total as u64);
    let absent = ObjectId::from_bytes([77; 32]);
    let ids = [&tree.ids[..], &[absent]].concat();
    let fetched = second.fetch(&ids).await;
    let mut expected: Vec<_> = tree.objects.iter().cloned().map(Some).collect();
    expected.push(None);
    assert!(fetched == expected);
}

#[tokio::test]
async fn more_pushes_at_once_than_are_read_at_a_time_all_arrive() {
    let (_home, founder) = TestHome::founded().await;
    let upload = founder.open_upload().await;
    let trees: Vec<_> = (0..12).map(|seed| tree(seed, 2, 3)).collect();
    let pushes = trees
        .iter()
        .map(|tree| founder.push_to(upload, &tree.objects));
    for (pushed, tree) in join_all(pushes).await.into_iter().zip(&trees) {
        assert_eq!(pushed, Ok(tree.objects.len() as u64));
        assert_eq!(missing(&founder, upload, &tree.ids).await, 0);
    }
}

#[tokio::test]
async fn a_commit_with_an_incomplete_root_changes_nothing() {
    let (home, founder) = TestHome::founded().await;
    let image = ImageId::from_bytes([1; 32]);
    let token = create(&founder, image, 1).await;
    let tree = tree(1, 2, 3);
    let (absent, rest) = tree.objects.split_first().unwrap();
    founder.push(rest).await.unwrap();
    let before = home.standing();
    let draft = Draft::first(image, tree.root, token);
    let commit = founder.device.commit(&home.roster(), &draft).to_bytes();
    let commit = Call::Commit {
        commit: commit.into(),
    };
    let missing = vec![tree.ids[0]];
    let refused = founder.call(commit.clone()).await;
    assert_eq!(refused, Err(Refusal::Incomplete { missing }));
    assert_eq!(home.standing(), before);
    let listed = founder.call(Call::Images { after: None }).await;
    assert_eq!(
        listed,
        Ok(Answer::Images {
            images: Vec::new(),
            more: false
        })
    );
    // The last object completes every ancestor that was waiting.
    founder.push(std::slice::from_ref(absent)).await.unwrap();
    assert!(founder.call(commit).await.is_ok());
}

#[tokio::test]
async fn parents_may_come_before_their_children() {
    let (home, founder) = TestHome::founded().await;
    let image = ImageId::from_bytes([1; 32]);
    let token = create(&founder, image, 1).await;
    let mut tree = tree(1, 4, 50);
    tree.objects.reverse();
    let draft = Draft::first(image, tree.root, token);
    commit(&home, &founder, &draft, &tree).await.unwrap();
}

#[tokio::test]
async fn a_push_of_what_is_no_object_is_refused() {
    let (_home, founder) = TestHome::founded().await;
    let good = tree(1, 1, 2);
    let bad = bytes::Bytes::from(vec![0; 400]);
    let pushed = founder.push(&[good.objects[0].clone(), bad]).await;
    let refused = img_net::LinkError::Refused(Refusal::BadObject);
    assert_eq!(pushed, Err(refused));
    let other = img_types::UploadId::from_bytes([8; 32]);
    let pushed = founder.push_to(other, &good.objects).await;
    let refused = img_net::LinkError::Refused(Refusal::SessionClosed);
    assert_eq!(pushed, Err(refused));
}

#[tokio::test]
async fn an_upload_session_outlives_connections_and_ends_by_idleness() {
    let (mut home, founder) = TestHome::founded().await;
    let upload = founder.open_upload().await;
    home.restart().await;
    let founder = home.member(&founder.device).await;
    assert_eq!(founder.open_upload().await, upload);
    home.advance_clock(24 * 3600 * 1000);
    let ids = vec![ObjectId::from_bytes([1; 32])];
    let asked = founder.call(Call::Missing { upload, ids }).await;
    assert_eq!(asked, Err(Refusal::SessionClosed));
    assert_ne!(founder.open_upload().await, upload);
}

#[tokio::test]
async fn a_repeated_request_has_one_effect_and_another_content_is_an_error() {
    let (home, founder) = TestHome::founded().await;
    let descriptor = founder
        .device
        .descriptor(founder.home(), ImageId::from_bytes([1; 32]), 1);
    let create = Call::CreateImage {
        descriptor: descriptor.to_bytes().into(),
        checkout: founder.device.checkout,
        terms: TERMS,
    };
    let id = RequestId::from_bytes([3; 32]);
    let first = founder.call_as(id, create.clone()).await.unwrap();
    let after = home.standing();
    home.advance_clock(1_000);
    let Answer::Granted { token, .. } = first else {
        panic!("{first:?}");
    };
    let again = founder.call_as(id, create).await.unwrap();
    let Answer::Granted {
        token: same,
        ttl_ms,
        current,
        ..
    } = again
    else {
        panic!("{again:?}");
    };
    assert_eq!((same, current), (token, true));
    assert!(ttl_ms <= TERMS.ttl_ms - 1_000, "the grant as it stands now");
    assert_eq!(home.standing(), after);

    let image = ImageId::from_bytes([1; 32]);
    let other = Call::DeleteImage {
        image,
        force: false,
    };
    let reused = founder.call_as(id, other.clone()).await;
    assert_eq!(reused, Err(Refusal::RequestReused));
    let request = img_proto::Request {
        id: None,
        call: other,
    };
    let without_id = founder.reply(request).await.unwrap().result;
    assert!(matches!(without_id, Err(Refusal::Malformed(_))));
}

#[tokio::test]
async fn history_is_told_newest_first_with_receipts() {
    let (home, founder) = TestHome::founded().await;
    let (mut draft, mut head, token) = image(&home, &founder, 1).await;
    for seed in 2..6 {
        let tree = tree(seed, 1, 2);
        draft = draft.after(head, tree.root, token);
        head = commit(&home, &founder, &draft, &tree).await.unwrap();
    }
    let log = |before, limit| {
        founder.call(Call::Log {
            image: draft.image,
            before,
            limit,
        })
    };
    let Ok(Answer::Log { commits, more }) = log(None, 2).await else {
        panic!("no log");
    };
    assert_eq!((commits.len(), more), (2, true));
    let receipt = SignedReceipt::decode(&commits[0].1).unwrap();
    assert_eq!((receipt.record.seq, receipt.record.commit), (Seq(4), head));
    let Ok(Answer::Log { commits, more }) = log(Some(Seq(3)), 100).await else {
        panic!("no log");
    };
    assert_eq!((commits.len(), more), (3, false));
}

#[tokio::test]
async fn a_rename_needs_the_newest_descriptor_and_a_free_name() {
    let (home, founder) = TestHome::founded().await;
    let (first, ..) = image(&home, &founder, 1).await;
    image(&home, &founder, 2).await;
    let device = &founder.device;
    let named = device.descriptor(founder.home(), first.image, 1);
    let rename = |name, before| {
        let next = device.rename(founder.home(), before, name);
        let descriptor = next.to_bytes().into();
        (next, Call::SetDescriptor { descriptor })
    };
    let (_, taken) = rename(2, &named);
    assert_eq!(founder.call(taken).await, Err(Refusal::NameTaken));
    let (renamed, call) = rename(3, &named);
    assert_eq!(founder.call(call).await, Ok(Answer::Done));
    let (_, stale) = rename(4, &named);
    assert_eq!(founder.call(stale).await, Err(Refusal::DescriptorMoved));
    let (_, call) = rename(1, &renamed);
    assert_eq!(founder.call(call).await, Ok(Answer::Done));
}

#[tokio::test]
async fn expand_sends_nodes_below_a_root_that_the_device_lacks() {
    let (home, founder) = TestHome::founded().await;
    let (blocks, leaves) = (tree(1, 1, 2), tree(2, 3, 2));
    let shared: Vec<ObjectId> = leaves
        .ids
        .iter()
        .copied()
        .filter(is_leaf(&leaves))
        .collect();
    let old = node(3, 1, shared.clone());
    let extra = node(4, 0, vec![blocks.ids[0]]);
    let new = node(5, 1, [&shared[..], &[extra.0]].concat());
    let objects = [
        &blocks.objects[..],
        &leaves.objects[..],
        &[old.1, extra.1.clone(), new.1.clone()],
    ]
    .concat();
    founder.push(&objects).await.unwrap();
    let objects = &home.running().home.objects;
    let expansion = |minus, left_edge, budget| crate::objects::Expansion {
        root: new.0,
        minus,
        left_edge,
        budget,
    };
    let walk = async |wanted| {
        let (sender, mut nodes) = tokio::sync::mpsc::channel(64);
        crate::objects::expand(objects, &wanted, &sender)
            .await
            .unwrap();
        drop(sender);
        let mut sent = Vec::new();
        while let Some(node) = nodes.recv().await {
            sent.push(node);
        }
        sent
    };
    let all = walk(expansion(None, false, u64::MAX)).await;
    assert_eq!(all.len(), 1 + shared.len() + 1);
    let fresh = walk(expansion(Some(old.0), false, u64::MAX)).await;
    assert!(fresh == [new.1.clone(), extra.1.clone()]);
    let edge = walk(expansion(None, true, u64::MAX)).await;
    assert_eq!(edge.len(), all.len());
    let little = walk(expansion(None, false, new.1.len() as u64)).await;
    assert!(little == [new.1]);
}

#[tokio::test]
async fn a_trace_is_set_without_its_objects_being_complete() {
    let (home, founder) = TestHome::founded().await;
    let (draft, ..) = image(&home, &founder, 1).await;
    let listed = vec![ObjectId::from_bytes([55; 32])];
    let (id, bytes) = sealed(ObjectKind::Trace, 1, 0, listed);
    let set = Call::SetTrace {
        image: draft.image,
        trace: id,
    };
    let missing = vec![id];
    let refused = founder.call(set.clone()).await;
    assert_eq!(refused, Err(Refusal::Incomplete { missing }));
    founder.push(&[bytes]).await.unwrap();
    assert_eq!(founder.call(set).await, Ok(Answer::Done));
}

#[tokio::test]
async fn a_challenge_is_answered_with_a_path_that_nobody_could_choose() {
    let (home, founder) = TestHome::founded().await;
    let (draft, commit, _) = image(&home, &founder, 1).await;
    let mut ends = std::collections::BTreeSet::new();
    for seed in 0..20u8 {
        let seed = [seed; 32];
        let prove = founder.call(Call::Prove { commit, seed }).await;
        let Ok(Answer::Proof { steps, object }) = prove else {
            panic!("{prove:?}");
        };
        assert_eq!(steps.len(), 2, "root, leaf, block");
        let mut id = draft.root;
        for (depth, step) in steps.iter().enumerate() {
            let mut reader = Reader::new(step);
            let step = Step::decode(&mut reader).unwrap();
            reader.finish().unwrap();
            assert!(step.is_chosen(&seed, depth));
            assert!(step.proof.verify(id, step.child));
            id = step.child;
        }
        assert_eq!(Parsed::decode(&object).unwrap().id(), id);
        ends.insert(id);
    }
    assert!(ends.len() > 2, "seeds lead to different objects");
    let unknown = Call::Prove {
        commit: CommitId::from_bytes([1; 32]),
        seed: [0; 32],
    };
    assert_eq!(founder.call(unknown).await, Err(Refusal::UnknownCommit));
}

fn is_leaf(tree: &Tree) -> impl Fn(&ObjectId) -> bool + '_ {
    |id| {
        let place = tree.ids.iter().position(|other| other == id).unwrap();
        let header = Parsed::decode(&tree.objects[place]).unwrap().header;
        header.kind == ObjectKind::Node && header.level == 0
    }
}

async fn missing(client: &Client, upload: img_types::UploadId, ids: &[ObjectId]) -> usize {
    let ids = ids.to_vec();
    match client.call(Call::Missing { upload, ids }).await {
        Ok(Answer::Missing { positions }) => positions.len(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn more_images_than_fit_one_reply_are_told_in_pages() {
    let (home, founder) = TestHome::founded().await;
    let (descriptor, count) = (vec![7u8; 60_000], 300u64);
    let (draft, commit, _) = image(&home, &founder, 1).await;
    let add = home.running().home.db.writer().call(move |tx| {
        Box::pin(async move {
            for n in 0..count {
                let mut id = [1; 32];
                id[..8].copy_from_slice(&(n + (2 << 56)).to_be_bytes());
                sqlx::query(
                    "INSERT INTO images (image, tag, descriptor, head, seq, epoch, stored_bytes, \
                     as_of_ms) VALUES ($1, $1, $2, $3, 0, 1, 0, 0)",
                )
                .bind(&id[..])
                .bind(&descriptor)
                .bind(&commit.as_bytes()[..])
                .execute(tx.sql().await?)
                .await?;
            }
            Ok(())
        })
    });
    add.await.unwrap();
    let mut listed: Vec<ImageId> = Vec::new();
    let mut pages = 0;
    loop {
        let after = listed.last().copied();
        let Ok(Answer::Images { images, more }) = founder.call(Call::Images { after }).await else {
            panic!("no images");
        };
        listed.extend(images.into_iter().map(|row| row.image));
        pages += 1;
        if !more {
            break;
        }
    }
    assert!(listed.is_sorted(), "each image once, in order");
    assert_eq!((listed.len() as u64, listed[0]), (count + 1, draft.image));
    assert!(pages > 4, "{pages}");
    // Leases come in pages too, however few of the images have one.
    let leases = Call::Leases {
        device: None,
        after: None,
    };
    let Ok(Answer::Leases { images, more }) = founder.call(leases).await else {
        panic!("no leases");
    };
    assert_eq!((images.len(), more), (1, false));
}
