//! Roots of which nodes are lost: they exist neither on the device nor at home.

use std::collections::BTreeSet;

use img_index::{KeyParts, Node, NodeSource};

use super::*;

const SMALL: Inode = Inode(5);
const LARGE: Inode = Inode(6);
const NEXT: Inode = Inode(7);

/// A large file between two smaller ones, streamed home.
async fn image() -> (Arc<Home>, Changes, Reference) {
    let home = Arc::new(Home::default());
    let mut changes = Changes::new();
    for (inode, blocks) in [(SMALL, 3), (LARGE, 600), (NEXT, 3)] {
        changes.create(inode);
        for block in 0..blocks {
            changes.write(inode, block * BLOCK, &noise(inode.0 << 32 | block, 5_000));
        }
    }
    let sealed = changes.seal_on(&Device::new(&home), None).await;
    (home, changes, sealed.root)
}

/// The leaves of a tree, with what they hold.
async fn leaves(device: &Device, root: Reference) -> Vec<(Reference, Arc<Node>)> {
    let mut found = Vec::new();
    let mut ways = vec![root];
    while let Some(way) = ways.pop() {
        device
            .objects
            .fetch_nodes(&[way], Class::Demand)
            .await
            .unwrap();
        let node = device.objects.node(&way).unwrap();
        match node.level() {
            0 => found.push((way, node)),
            _ => ways.extend((0..node.len()).map(|position| node.child(position))),
        }
    }
    found
}

/// The home without some leaves of the large file's contents.
async fn losing(home: &Arc<Home>, root: Reference) -> (Arc<Home>, usize) {
    let whole = Device::new(home);
    let objects = home.objects.lock().unwrap().clone();
    let mut lost = BTreeSet::new();
    for (leaf, node) in leaves(&whole, root).await {
        let mut keys = (0..node.len()).map(|position| node.entry(position).0);
        let is_large = |key: Key| matches!(key.parts(), KeyParts::Extent { inode: LARGE, .. });
        if keys.all(is_large) {
            lost.insert(leaf.id);
        }
    }
    let left = objects.into_iter().filter(|(id, _)| !lost.contains(id));
    let home = Home {
        objects: Mutex::new(left.collect()),
        ..Home::default()
    };
    (Arc::new(home), lost.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_leaves_are_lost_can_be_removed_or_emptied_or_written_anew() {
    for case in 0..3 {
        let (home, mut changes, root) = image().await;
        let (damaged, lost) = losing(&home, root).await;
        assert!(lost > 2, "{lost} leaves of the file alone");
        match case {
            0 => changes.drop_inode(LARGE),
            1 => changes.truncate(LARGE, 0),
            _ => {
                changes.truncate(LARGE, 0);
                changes.write(LARGE, 10 * BLOCK + 7, b"anew");
            }
        }
        changes.write(NEXT, 70, b"more");
        changes.freeze();
        let closed = changes.closed(Some(root));
        let whole = Device::new(&home).try_seal(&closed).await.unwrap();
        let sealed = Device::new(&damaged).try_seal(&closed).await.unwrap();
        assert_eq!(sealed.root, whole.root, "case {case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_needs_lost_leaves_names_the_file_until_it_is_removed() {
    let (home, mut changes, root) = image().await;
    let (damaged, _) = losing(&home, root).await;
    changes.write(LARGE, 300 * BLOCK + 9, b"here");
    changes.write(SMALL, 9, b"and here");
    changes.freeze();
    let device = Device::new(&damaged);
    let mut closed = changes.closed(Some(root));
    let refused = device.try_seal(&closed).await;
    let names_it = matches!(&refused, Err(SealError::Lost(files)) if *files == [LARGE]);
    assert!(names_it, "{refused:?}");

    changes.drop_inode(LARGE);
    closed.removed = changes.overlay.removed_after(closed.generation.id());
    let sealed = device.try_seal(&closed).await.unwrap();
    changes.overlay.drop_oldest(closed.generation.id());
    device.stream();
    let image = device.read_image(sealed.root).await;
    assert!(!image.files.contains_key(&LARGE));
    for inode in [SMALL, NEXT] {
        assert!(image.files[&inode].1 == changes.files[&inode], "{inode:?}");
    }
    let after = changes.seal_on(&device, Some(sealed.root)).await;
    assert_eq!(after.files, 2);
    assert_eq!(device.read_image(after.root).await.files, image.files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_leaf_of_metadata_is_told() {
    let (home, mut changes, root) = image().await;
    let metadata = leaves(&Device::new(&home), root).await.into_iter();
    let is_metadata = |node: &Node| matches!(node.entry(0).0.parts(), KeyParts::Attributes(_));
    for (leaf, node) in metadata {
        if is_metadata(&node) {
            home.objects.lock().unwrap().remove(&leaf.id);
        }
    }
    changes.write(SMALL, 9, b"here");
    changes.freeze();
    let refused = Device::new(&home)
        .try_seal(&changes.closed(Some(root)))
        .await;
    let told = matches!(&refused, Err(SealError::LostIndex(Some(gap))) if gap.contents().is_none());
    assert!(told, "{refused:?}");
}
