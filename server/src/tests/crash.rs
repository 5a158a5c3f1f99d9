//! What survives: spools without rows, torn tails, packs, damaged files, a second process.

use img_net::LinkError;
use img_proto::{Answer, Call, Refusal};
use img_store::Spool;
use img_types::ImageId;

use super::TestHome;
use super::flow::{commit, create, image, stage};
use super::leases::release;
use super::papers::Draft;
use super::tree::tree;
use crate::{FolderError, Running, StartError};

#[tokio::test]
async fn objects_in_a_spool_without_rows_get_them_at_the_next_start() {
    let (mut home, founder) = TestHome::founded().await;
    let token = create(&founder, ImageId::from_bytes([1; 32]), 1).await;
    home.stop().await;
    // As after a crash between the sync and the rows, with a torn record behind.
    let tree = tree(1, 2, 30);
    let path = home.path.join("spool").join("000000000009.spool");
    let mut spool = Spool::create(&path).unwrap();
    for (id, object) in tree.ids.iter().zip(&tree.objects) {
        spool.append(*id, object).unwrap();
    }
    spool.sync().unwrap();
    drop(spool);
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    std::io::Write::write_all(&mut file, &[7; 100]).unwrap();

    home.resume().await;
    let founder = home.member(&founder.device).await;
    let upload = founder.open_upload().await;
    let ids = tree.ids.clone();
    let missing = founder.call(Call::Missing { upload, ids }).await;
    let positions = Vec::new();
    assert_eq!(missing, Ok(Answer::Missing { positions }));
    let draft = Draft::first(ImageId::from_bytes([1; 32]), tree.root, token);
    commit(&home, &founder, &draft, &tree).await.unwrap();
    let fetched = founder.fetch(&tree.ids).await;
    assert!(fetched.into_iter().eq(tree.objects.into_iter().map(Some)));
}

#[tokio::test]
async fn a_damaged_record_in_a_spool_costs_no_other_object() {
    let (mut home, founder) = TestHome::founded().await;
    image(&home, &founder, 1).await;
    let first = tree(1, 2, 3);
    home.stop().await;
    let spools = std::fs::read_dir(home.path.join("spool")).unwrap();
    let paths: Vec<_> = spools.map(|entry| entry.unwrap().path()).collect();
    let [path] = paths.as_slice() else {
        panic!("{paths:?}");
    };
    // The header of the second record: a scan takes what lies behind for a torn tail.
    let mut bytes = std::fs::read(path).unwrap();
    let second = 48 + first.objects[0].len();
    bytes[second + 8] ^= 1;
    std::fs::write(path, &bytes).unwrap();

    home.resume().await;
    let founder = home.member(&founder.device).await;
    let more = tree(2, 2, 3);
    founder.push(&more.objects).await.unwrap();
    home.restart().await;
    let founder = home.member(&founder.device).await;
    for tree in [first, more] {
        let fetched = founder.fetch(&tree.ids).await;
        assert!(fetched.into_iter().eq(tree.objects.into_iter().map(Some)));
    }
    home.stop().await;
    let findings = crate::check(&home.places()).await.unwrap();
    assert_eq!(findings.problems, Vec::<String>::new());
}

#[tokio::test]
async fn objects_without_room_for_their_rows_are_refused_as_such() {
    let (home, founder) = TestHome::founded().await;
    let limit = |pages: &'static str| {
        home.running().home.db.writer().call(move |tx| {
            Box::pin(async move {
                sqlx::query(pages).execute(tx.sql().await?).await?;
                Ok(())
            })
        })
    };
    let upload = founder.open_upload().await;
    limit("PRAGMA max_page_count = 1").await.unwrap();
    let pushes = (0..100).map(|seed| tree(seed, 2, 30));
    let mut refused = None;
    for tree in pushes {
        match founder.push_to(upload, &tree.objects).await {
            Ok(_) => {}
            Err(LinkError::Refused(Refusal::NoRoom(_))) => {
                refused = Some(tree);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    limit("PRAGMA max_page_count = 100000").await.unwrap();
    let tree = refused.unwrap();
    let pushed = founder.push_to(upload, &tree.objects).await;
    assert_eq!(pushed, Ok(tree.objects.len() as u64));
}

#[tokio::test]
async fn a_restart_keeps_everything_that_was_acknowledged() {
    let (mut home, founder) = TestHome::founded().await;
    image(&home, &founder, 1).await;
    let standing = home.standing();
    home.restart().await;
    assert_eq!(home.standing(), standing);
    let founder = home.member(&founder.device).await;
    let Ok(Answer::Images { images, .. }) = founder.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    assert_eq!(images.len(), 1);
    home.stop().await;
    let findings = crate::check(&home.places()).await.unwrap();
    assert_eq!(findings.problems, Vec::<String>::new());
    assert_eq!((findings.objects, findings.commits), (9, 1));
    assert_eq!(findings.log_entries, standing.position.0);
}

#[tokio::test]
async fn full_spools_become_packs_that_are_read_and_checked() {
    let (mut home, founder) = TestHome::founded().await;
    let token = create(&founder, ImageId::from_bytes([1; 32]), 1).await;
    // 160 MB fill two spools, which end behind 64 MiB, and begin a third.
    let blocks: Vec<_> = (0..330)
        .map(|seed| img_testkit::object(seed, 500_000))
        .collect();
    let (ids, mut objects): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
    let (root, bytes) = super::tree::node(1, 0, ids.clone());
    objects.push(bytes);
    founder.push(&objects).await.unwrap();
    let draft = Draft::first(ImageId::from_bytes([1; 32]), root, token);
    let signed = founder.device.commit(&home.roster(), &draft).to_bytes();
    let commit = signed.into();
    founder.call(Call::Commit { commit }).await.unwrap();
    packed(&home, 2).await;
    // Now most are in packs and some in the open spool, and all are read in the order asked.
    let fetched = founder.fetch(&ids).await;
    assert!(
        fetched
            .iter()
            .zip(&objects)
            .all(|(a, b)| a.as_ref() == Some(b))
    );
    home.stop().await;
    let findings = crate::check(&home.places()).await.unwrap();
    assert_eq!(findings.problems, Vec::<String>::new());
    assert_eq!(findings.objects, 331);
    let spools = std::fs::read_dir(home.path.join("spool")).unwrap().count();
    assert_eq!(spools, 1, "packed spools are gone");

    // A flipped bit in a pack is found by the check.
    let packs = home.path.join("objects").join("packs");
    let pack = std::fs::read_dir(packs).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(pack.path()).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(pack.path(), bytes).unwrap();
    let findings = crate::check(&home.places()).await.unwrap();
    let [damaged, incomplete] = &findings.problems[..] else {
        panic!("{:?}", findings.problems);
    };
    assert!(damaged.contains("is damaged and counts as absent"));
    assert!(incomplete.contains(&format!("{root} counts as complete without")));
    // From then on it is asked for, and a device that has it makes the home whole again.
    home.resume().await;
    let founder = home.member(&founder.device).await;
    founder.push(&objects).await.unwrap();
    home.stop().await;
    let findings = crate::check(&home.places()).await.unwrap();
    assert_eq!(findings.problems, Vec::<String>::new());
    assert_eq!(findings.objects, 331);
}

#[tokio::test]
async fn an_object_that_is_read_damaged_is_asked_for_again() {
    let (home, founder) = TestHome::founded().await;
    image(&home, &founder, 1).await;
    let tree = tree(1, 2, 3);
    let spools = std::fs::read_dir(home.path.join("spool")).unwrap();
    let path = spools.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let second = 48 + tree.objects[0].len() + 48;
    bytes[second + 40] ^= 1;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    let mut expected: Vec<_> = tree.objects.iter().cloned().map(Some).collect();
    let fetched = founder.fetch(&tree.ids).await;
    let lost = fetched.iter().position(Option::is_none).unwrap();
    expected[lost] = None;
    assert!(fetched == expected, "one is damaged, and no other is lost");
    let upload = founder.open_upload().await;
    let ids = tree.ids.clone();
    let missing = founder.call(Call::Missing { upload, ids }).await;
    let positions = vec![u32::try_from(lost).unwrap()];
    assert_eq!(missing, Ok(Answer::Missing { positions }));
    let again = &tree.objects[lost..=lost];
    founder.push_to(upload, again).await.unwrap();
    expected[lost] = Some(tree.objects[lost].clone());
    assert!(founder.fetch(&tree.ids).await == expected);
}

#[tokio::test]
async fn tables_of_the_first_version_are_brought_up_to_date() {
    let (mut home, founder) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &founder, 1).await;
    let work = tree(2, 1, 3);
    let upon = draft.after(head, work.root, token);
    stage(&home, &founder, &upon, &work).await.unwrap();
    home.stop().await;
    let address = home.places().database;
    let mut connection = crate::db::connect(&address).await.unwrap();
    for sql in [
        "ALTER TABLE staged ADD COLUMN remaining_ms BIGINT NOT NULL DEFAULT 60000",
        "ALTER TABLE staged DROP COLUMN until_ms",
        "DROP INDEX daemons_newest",
        "CREATE UNIQUE INDEX daemons_newest ON daemons (device, instance)",
        "DROP TABLE audit",
        "ALTER TABLE home DROP COLUMN restored",
        "UPDATE home SET schema_version = 1",
    ] {
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }
    drop(connection);
    let beside = crate::usage(&home.places()).await;
    assert!(matches!(beside, Err(crate::OpenError::OtherVersion(1))));
    home.resume().await;
    let founder = home.member(&founder.device).await;
    // Its time stood still, and begins with the end of its token.
    let staged = async |after_ms| {
        home.advance_clock(after_ms);
        crate::calls::tidy(&home.running().home).await.unwrap();
        match founder.call(Call::Images { after: None }).await {
            Ok(Answer::Images { images, .. }) => images[0].staged.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(staged(59_000).await, 1);
    release(&founder, draft.image, token).await.unwrap();
    assert_eq!(staged(59_000).await, 1);
    assert_eq!(staged(1_000).await, 0);
    home.stop().await;
    assert_eq!(crate::usage(&home.places()).await.unwrap().images, 1);
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let (home, _founder) = TestHome::founded().await;
    let listen = "127.0.0.1:0".parse().unwrap();
    let second = Running::start(&home.places(), listen).await;
    let Err(StartError::Folder(FolderError::InUse(_))) = second else {
        panic!("two processes serve one home");
    };
    // The first one is not disturbed by the attempt.
    assert!(crate::usage(&home.places()).await.is_ok());
}

#[tokio::test]
async fn a_roster_that_was_tampered_with_does_not_start() {
    let (mut home, founder) = TestHome::founded().await;
    home.second(&founder).await;
    home.stop().await;
    let mut connection = crate::db::connect(&home.places().database).await.unwrap();
    sqlx::query("UPDATE roster SET entry = zeroblob(300) WHERE seq = 1")
        .execute(&mut connection)
        .await
        .unwrap();
    drop(connection);
    let listen = "127.0.0.1:0".parse().unwrap();
    let started = Running::start(&home.places(), listen).await;
    assert!(matches!(
        started,
        Err(StartError::Database(crate::OpenError::Roster(_)))
    ));
}

/// Waits until so many packs have taken over from their spools.
pub(super) async fn packed(home: &TestHome, packs: u64) {
    let mut published = home.running().home.published();
    loop {
        published.borrow_and_update();
        let spools = std::fs::read_dir(home.path.join("spool")).unwrap().count();
        let usage = crate::usage(&home.places()).await.unwrap();
        if usage.packs == packs && spools == 1 {
            return;
        }
        // The file goes last, after its transaction: look again even if nothing is published.
        let _ =
            tokio::time::timeout(std::time::Duration::from_millis(50), published.changed()).await;
    }
}
