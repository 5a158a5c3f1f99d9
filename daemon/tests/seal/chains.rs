//! Blocks, patches and inline contents, case by case.

use super::*;

const FILE: Inode = Inode(2);

/// A home with an image of one file of two blocks and a bit, sealed on a device that is gone.
async fn image(len: usize) -> (Arc<Home>, Changes, SealedRoot) {
    let home = Arc::new(Home::default());
    let mut changes = Changes::new();
    changes.create(FILE);
    changes.write(FILE, 0, &noise(0, len));
    let sealed = changes.seal_on(&Device::new(&home), None).await;
    (home, changes, sealed)
}

const LEN: usize = 2 * BLOCK_SIZE + 5_000;

/// Where the extents of the file stand: how many patches each block has.
async fn patches(home: &Arc<Home>, sealed: SealedRoot, changes: &Changes) -> Vec<usize> {
    let image = Device::new(home).read_image(sealed.root).await;
    for (inode, content) in &changes.files {
        assert!(
            image.files[inode].1 == *content,
            "{inode:?} reads as it was written"
        );
    }
    assert_eq!(image.files.len(), changes.files.len());
    image
        .extents
        .values()
        .map(|extent| extent.patches.len())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_grow_a_chain_of_patches_and_who_has_the_parts_merges_them() {
    let (home, mut changes, mut sealed) = image(LEN).await;
    assert_eq!(patches(&home, sealed, &changes).await, [0, 0, 0]);
    for round in 1..=7 {
        changes.write(FILE, 1_000 * round, &noise(round, 1_500));
        sealed = changes
            .seal_on(&Device::new(&home), Some(sealed.root))
            .await;
        let counts = patches(&home, sealed, &changes).await;
        assert_eq!(counts, [round as usize, 0, 0]);
    }
    let reader = Device::new(&home);
    reader.read_image(sealed.root).await;
    // What a reader fetched is kept on its disk a moment later.
    while let Some(missing) = missing(&reader, sealed.root).await {
        reader.objects.block(&missing, Class::Demand).await.unwrap();
        tokio::task::yield_now().await;
    }
    changes.write(FILE, 3, b"x");
    sealed = changes.seal_on(&reader, Some(sealed.root)).await;
    assert_eq!(patches(&home, sealed, &changes).await, [0, 0, 0]);
}

/// A part of the file that a device has not got on its disk.
async fn missing(device: &Device, root: Reference) -> Option<Reference> {
    let image = device.read_image(root).await;
    image.extents.values().find_map(|extent| {
        let value = Value::Extent(extent.clone());
        value
            .references()
            .find(|part| !device.objects.is_local(&part.id))
            .copied()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_folds_its_own_patches_over_a_base_that_it_has_not_got() {
    let (home, mut changes, mut sealed) = image(LEN).await;
    let device = Device::new(&home);
    let mut counts = Vec::new();
    for round in 0..9 {
        changes.write(FILE, 700 * round, &noise(round, 900));
        sealed = changes.seal_on(&device, Some(sealed.root)).await;
        counts.push(patches(&home, sealed, &changes).await[0]);
    }
    assert_eq!(counts, [1, 2, 3, 4, 1, 2, 3, 4, 1]);

    // When the folded patches cover all, the base is not needed any more.
    let mut counts = Vec::new();
    for (offset, len) in [
        (0, 16_000),
        (16_000, 16_000),
        (32_000, 16_000),
        (48_000, 16_000),
        (64_000, 1_536),
        (5, 3),
        (6, 3),
        (7, 3),
    ] {
        changes.write(FILE, offset, &noise(offset, len));
        sealed = changes.seal_on(&device, Some(sealed.root)).await;
        counts.push(patches(&home, sealed, &changes).await[0]);
    }
    assert_eq!(counts, [2, 3, 4, 1, 2, 3, 4, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_at_the_format_s_limit_is_fetched_and_merged() {
    let (home, mut changes, mut sealed) = image(LEN).await;
    for round in 0..64 {
        changes.write(FILE, 10 * round, &noise(round, 8));
        sealed = changes
            .seal_on(&Device::new(&home), Some(sealed.root))
            .await;
    }
    assert_eq!(patches(&home, sealed, &changes).await, [64, 0, 0]);

    changes.write(FILE, 9, b"one more");
    changes.freeze();
    let closed = changes.closed(Some(sealed.root));
    let lost = Home {
        objects: Mutex::new(home.objects.lock().unwrap().clone()),
        ..Home::default()
    };
    let image = Device::new(&home).read_image(sealed.root).await;
    let base = image.extents[&(FILE, 0)].base.unwrap();
    lost.objects.lock().unwrap().remove(&base.id);
    let refused = Device::new(&Arc::new(lost)).try_seal(&closed).await;
    let lost = matches!(&refused, Err(SealError::Lost(files)) if *files == [FILE]);
    assert!(lost, "{refused:?}");

    let device = Device::new(&home);
    let sealed = device.try_seal(&closed).await.unwrap();
    device.stream();
    assert_eq!(patches(&home, sealed, &changes).await, [0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_share_a_patch_object_and_a_small_commit_stays_small() {
    let (home, mut changes, sealed) = image(80 * BLOCK_SIZE).await;
    for block in 0..80 {
        let bytes = noise(block, 4_096);
        changes.write(FILE, block * BLOCK + 8_192, &bytes);
    }
    let device = Device::new(&home);
    let after = changes.seal_on(&device, Some(sealed.root)).await;
    assert_eq!(patches(&home, after, &changes).await, [1; 80]);
    let image = Device::new(&home).read_image(after.root).await;
    let mut objects: Vec<_> = image
        .extents
        .values()
        .map(|extent| extent.patches[0].reference.id)
        .collect();
    objects.dedup();
    assert_eq!(objects.len(), 3, "32 blocks a patch");
    assert!(after.sealed_bytes < 80 * 4_096 + 100_000, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_the_same_bytes_again_changes_no_reference() {
    let (home, mut changes, sealed) = image(LEN).await;
    let device = Device::new(&home);
    let content = changes.files[&FILE].clone();
    // The first block as a whole, the second by more than a quarter with its parts at hand.
    let image = device.read_image(sealed.root).await;
    device.stream();
    changes.write(FILE, 0, &content[..BLOCK_SIZE]);
    changes.write(FILE, BLOCK, &content[BLOCK_SIZE..][..20_000]);
    let after = changes.seal_on(&device, Some(sealed.root)).await;
    assert_eq!(after.root, sealed.root);
    assert_eq!(device.read_image(after.root).await, image);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_move_between_inline_and_extents_as_they_shrink_and_grow() {
    let (home, mut changes, sealed) = image(1_000).await;
    let device = Device::new(&home);
    let mut root = sealed.root;
    assert_eq!(device.read_image(root).await.inline, [FILE]);

    // Grown by a write far behind, by a write over the start, and by its size alone.
    changes.write(FILE, 3 * BLOCK + 7, b"far");
    root = changes.seal_on(&device, Some(root)).await.root;
    let image = device.read_image(root).await;
    assert_eq!(image.extents.len(), 2, "the first block and the last");
    assert!(image.inline.is_empty() && image.files[&FILE].1 == changes.files[&FILE]);

    changes.truncate(FILE, 600);
    root = changes.seal_on(&device, Some(root)).await.root;
    let image = device.read_image(root).await;
    assert_eq!((image.inline, image.extents.len()), (vec![FILE], 0));
    assert!(image.files[&FILE].1 == changes.files[&FILE]);

    changes.truncate(FILE, 1 << 20);
    root = changes.seal_on(&device, Some(root)).await.root;
    let image = device.read_image(root).await;
    assert_eq!((image.inline.len(), image.extents.len()), (0, 1));
    assert!(image.files[&FILE].1 == changes.files[&FILE]);

    changes.truncate(FILE, 0);
    changes.write(FILE, 0, b"again");
    changes.zero(FILE, 0, 5);
    root = changes.seal_on(&device, Some(root)).await.root;
    let image = device.read_image(root).await;
    assert_eq!((image.inline.len(), image.extents.len()), (0, 0));
    assert!(image.files[&FILE].1 == [0; 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patched_copy_of_a_block_replaces_inline_contents() {
    let (home, mut changes, sealed) = image(LEN).await;
    let small = Inode(3);
    changes.create(small);
    changes.write(small, 0, b"small");
    let device = Device::new(&home);
    let sealed = changes.seal_on(&device, Some(sealed.root)).await;
    let image = device.read_image(sealed.root).await;
    assert_eq!(image.inline, [small]);

    changes.copy(FILE, small, 0, &image.extents[&(FILE, 0)]);
    changes.write(small, 10, b"patched");
    let sealed = changes.seal_on(&device, Some(sealed.root)).await;
    assert_eq!(patches(&home, sealed, &changes).await, [0, 0, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_and_the_next_inode_follow_what_is_named() {
    let (home, mut changes, sealed) = image(5_000).await;
    let device = Device::new(&home);
    let totals = |files, logical_bytes| Value::Totals {
        files,
        logical_bytes,
    };
    let image = device.read_image(sealed.root).await;
    assert_eq!(image.facts, [Value::Number(3), totals(1, 5_000)]);
    assert_eq!((sealed.files, sealed.logical_bytes), (1, 5_000));

    // Open but unlinked: it stays readable, and counts no more.
    let unlinked = Attributes {
        nlink: 0,
        ..attributes(5_000)
    };
    let marked = [
        Change::Put(Key::attributes(FILE), Value::Attributes(unlinked)),
        Change::Put(Key::open_unlinked(FILE), Value::Mark),
    ];
    marked
        .into_iter()
        .for_each(|change| changes.overlay.apply(change));
    changes.create(Inode(9));
    changes.write(Inode(9), 0, &noise(1, 70_000));
    let sealed = changes.seal_on(&device, Some(sealed.root)).await;
    let map = device.read_all(sealed.root).await;
    assert_eq!(map.get(&Key::open_unlinked(FILE)), Some(&Value::Mark));
    let image = device.read_image(sealed.root).await;
    assert_eq!(image.files[&FILE].1.len(), 5_000);
    assert_eq!(image.facts, [Value::Number(10), totals(1, 70_000)]);

    changes.drop_inode(FILE);
    changes
        .overlay
        .apply(Change::Delete(Key::open_unlinked(FILE)));
    changes.drop_inode(Inode(9));
    let sealed = changes.seal_on(&device, Some(sealed.root)).await;
    let map = device.read_all(sealed.root).await;
    assert_eq!(map.len(), 2, "only facts are left: {map:?}");
    let image = device.read_image(sealed.root).await;
    assert_eq!(image.facts, [Value::Number(10), totals(0, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_not_what_the_extent_says_is_corruption() {
    let (home, mut changes, sealed) = image(LEN).await;
    changes.write(FILE, 7, b"patched");
    let device = Device::new(&home);
    let sealed = changes.seal_on(&device, Some(sealed.root)).await;
    let image = device.read_image(sealed.root).await;
    let extent = image.extents[&(FILE, 0)].clone();

    let mut other_section = extent.clone();
    other_section.patches[0].section = 1;
    let mut no_patch = extent.clone();
    no_patch.patches[0].reference = extent.base.unwrap();
    let mut no_base = extent.clone();
    no_base.base = Some(Reference {
        len: 1,
        ..extent.base.unwrap()
    });
    for wrong in [other_section, no_patch, no_base] {
        let outcome = read_block(&device.objects, &wrong, Class::Demand).await;
        assert!(
            matches!(outcome, Err(FetchError::Corrupt(_))),
            "{outcome:?}"
        );
    }
    let whole = read_block(&device.objects, &extent, Class::Demand)
        .await
        .unwrap();
    assert_eq!(load_block(&device.objects, &extent).unwrap(), Some(whole));
    assert_eq!(
        load_block(&Device::new(&home).objects, &extent).unwrap(),
        None
    );
}

/// How much of a file with holes is left is counted in parts of the index that the device never had.
#[tokio::test(flavor = "multi_thread")]
async fn the_extents_of_a_file_with_holes_are_counted_where_it_is_punched() {
    let home = Arc::new(Home::default());
    let mut changes = Changes::new();
    changes.create(FILE);
    for block in (0..300).chain([400, 599]) {
        changes.write(FILE, block * BLOCK, b"something");
    }
    let first = changes.seal_on(&Device::new(&home), None).await.root;
    changes.zero(FILE, 10 * BLOCK, 280 * BLOCK);
    changes.truncate(FILE, 500 * BLOCK);
    let other = Device::new(&home);
    let second = changes.seal_on(&other, Some(first)).await.root;
    let image = other.read_image(second).await;
    assert_eq!(image.files[&FILE].0.extents, Some(21));
}
