//! Backups of a running home, restored homes, and homes that went back without anybody saying so.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use img_proto::{Answer, Call, Refusal};
use img_types::{CommitId, Epoch, ImageId, Seq, Token};

use super::flow::{commit, create, image};
use super::leases::{acquire, renew};
use super::papers::Draft;
use super::tree::tree;
use super::{Client, TestHome};
use crate::{BackupError, FolderError};

/// An image's commits with their receipts, oldest first.
async fn history(client: &Client, image: ImageId) -> Vec<(Bytes, Bytes)> {
    let log = Call::Log {
        image,
        before: None,
        limit: 100,
    };
    match client.call(log).await {
        Ok(Answer::Log { mut commits, .. }) => {
            commits.reverse();
            commits
        }
        other => panic!("{other:?}"),
    }
}

async fn next(
    home: &TestHome,
    client: &Client,
    draft: Draft,
    head: CommitId,
    token: Token,
    seed: u64,
) -> (Draft, CommitId) {
    let tree = tree(seed, 1, 2);
    let draft = draft.after(head, tree.root, token);
    let head = commit(home, client, &draft, &tree).await.unwrap();
    (draft, head)
}

/// Copies the database of a home, which goes on.
async fn copied(home: &mut TestHome) -> PathBuf {
    home.stop().await;
    let copy = home.path.join("copy");
    std::fs::copy(home.path.join("home.sqlite"), &copy).unwrap();
    home.resume().await;
    copy
}

/// Puts a copy of its database back under a home, without telling it.
async fn go_back(home: &mut TestHome, copy: &Path) {
    home.stop().await;
    std::fs::copy(copy, home.path.join("home.sqlite")).unwrap();
    home.resume().await;
}

/// Whether a token is refused because nobody holds the image.
async fn is_void(client: &Client, image: ImageId, token: Token) -> bool {
    let refused = renew(client, image, token).await;
    matches!(refused, Err(Refusal::TokenStale { holder: None, .. }))
}

/// Puts a restored home in place of the one that is lost.
async fn replace(home: &mut TestHome, from: &Path) {
    home.stop().await;
    home.path = home.path.with_extension("restored");
    crate::restore(from, &home.path).await.unwrap();
    home.resume().await;
}

#[tokio::test]
async fn a_restored_home_voids_leases_and_takes_back_what_devices_prove() {
    let (mut home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let upload = first.open_upload().await;
    let to = home.path.with_extension("backup");
    let copied = crate::backup(&home.places(), &to).await.unwrap();
    assert_eq!((copied.files, &copied.problems), (1, &Vec::new()));
    let backed_up = home.standing();
    let (draft, head) = next(&home, &first, draft, head, token, 5).await;
    let (commits, seen) = (history(&first, draft.image).await, home.standing());

    replace(&mut home, &to).await;
    let standing = home.standing();
    assert_ne!(standing.incarnation, backed_up.incarnation);
    // The log names both incarnations from now on.
    assert_eq!(standing.position.0, backed_up.position.0 + 2);
    assert!(crate::usage(&home.places()).await.unwrap().restored);
    // Its device notices, and says that it goes on with this home.
    let mut back = home.connect(&first.device).await;
    let hello = back.hello(Some(seen)).await;
    assert!(matches!(hello, Err(Refusal::WentBack { .. })), "{hello:?}");
    // A receipt of the incarnation before starts nothing.
    let receipt = commits[1].1.clone();
    back.call(Call::ShowReceipt { receipt }).await.unwrap();
    assert_eq!(home.standing(), standing);
    back.home = first.home;
    back.hello(None).await.unwrap();
    let ids = Vec::new();
    let asked = back.call(Call::Missing { upload, ids }).await;
    assert_eq!(asked, Err(Refusal::SessionClosed));
    assert!(is_void(&back, draft.image, token).await);
    // The lost commit comes back: its objects first.
    let readmit = Call::Readmit {
        descriptor: None,
        image: draft.image,
        commits: commits.clone(),
    };
    let refused = back.call(readmit.clone()).await;
    assert!(matches!(refused, Err(Refusal::Incomplete { .. })));
    back.push(&tree(5, 1, 2).objects).await.unwrap();
    assert_eq!(back.call(readmit).await, Ok(Answer::Done));
    assert_eq!(home.standing().incarnation, standing.incarnation);
    let token = acquire(&back, draft.image, Some(head)).await.unwrap();
    next(&home, &back, draft, head, token, 6).await;
    home.stop().await;
    let findings = crate::check(&home.places()).await.unwrap();
    assert_eq!((findings.problems, findings.commits), (Vec::new(), 3));
}

#[tokio::test]
async fn a_receipt_proves_that_a_home_went_back_and_nothing_less_does() {
    let (mut home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let copy = copied(&mut home).await;
    let first = home.member(&first.device).await;
    next(&home, &first, draft, head, token, 5).await;
    let commits = history(&first, draft.image).await;
    let before = home.standing();
    // Nothing is wrong yet: what the log has proves nothing.
    let receipt = commits[1].1.clone();
    let show = Call::ShowReceipt { receipt };
    assert_eq!(first.call(show.clone()).await, Ok(Answer::Done));
    assert_eq!(home.standing(), before);

    go_back(&mut home, &copy).await;
    let second = home.member(&second.device).await;
    assert_eq!(home.standing().incarnation, before.incarnation);
    // A receipt that somebody else signed, or a stranger's word, is none.
    let forged = Call::ShowReceipt {
        receipt: commits[1].0.clone(),
    };
    let refused = second.call(forged).await;
    assert!(matches!(refused, Err(Refusal::BadRecord(_))));
    let stranger = home.connect(&super::papers::Device::new(9)).await;
    assert_eq!(stranger.call(show.clone()).await, Err(Refusal::NotMember));
    let stands = home.standing();
    // A device shows it although its Hello is refused.
    let back = home.connect(&first.device).await;
    let hello = back.hello(Some(before)).await;
    assert_eq!(hello, Err(Refusal::WentBack { at_seen: None }));
    let watched = second.call(Call::Watch {
        after: stands.position,
    });
    let (shown, watched) = tokio::join!(back.call(show.clone()), watched);
    assert_eq!(shown, Ok(Answer::Done));
    assert_eq!(watched, Ok(Answer::Changed { images: Vec::new() }));
    let now = home.standing();
    assert_ne!(now.incarnation, before.incarnation);
    assert_eq!(now.position.0, stands.position.0 + 2);
    assert_eq!(back.call(show).await, Ok(Answer::Done));
    assert_eq!(home.standing(), now);
    // The lease of before the copy is void: whoever comes first has the image.
    let theirs = acquire(&second, draft.image, None).await.unwrap();
    assert_eq!(theirs.epoch, Epoch(2));
    // What the home had acknowledged comes back whatever the token, and the holder is an orphan.
    back.hello(None).await.unwrap();
    let readmit = Call::Readmit {
        descriptor: None,
        image: draft.image,
        commits,
    };
    let after = home.standing().position;
    let watched = second.call(Call::Watch { after });
    back.push(&tree(5, 1, 2).objects).await.unwrap();
    let (readmitted, watched) = tokio::join!(back.call(readmit), watched);
    assert_eq!(readmitted, Ok(Answer::Done));
    let images = vec![draft.image];
    assert_eq!(watched, Ok(Answer::Changed { images }));
    let stale = renew(&second, draft.image, theirs).await;
    assert!(matches!(
        stale,
        Err(Refusal::TokenStale {
            epoch: Epoch(3),
            ..
        })
    ));
    let Ok(Answer::Images { images, .. }) = second.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    assert_eq!((images[0].seq, &images[0].lease), (Some(Seq(1)), &None));
}

#[tokio::test]
async fn a_home_that_went_back_behind_its_own_new_incarnation_begins_another_once() {
    let (mut home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let oldest = home.standing();
    // In each of two times after the copy something is acknowledged that the copy lacks.
    let copy = copied(&mut home).await;
    let first = home.member(&first.device).await;
    next(&home, &first, draft, head, token, 5).await;
    let of_first = history(&first, draft.image).await[1].1.clone();
    go_back(&mut home, &copy).await;
    let first = home.member(&first.device).await;
    let show = |receipt: &Bytes| Call::ShowReceipt {
        receipt: receipt.clone(),
    };
    assert_eq!(first.call(show(&of_first)).await, Ok(Answer::Done));
    let second = home.standing().incarnation;
    assert_ne!(second, oldest.incarnation);
    let new = acquire(&first, draft.image, None).await.unwrap();
    next(&home, &first, draft, head, new, 6).await;
    let commits = history(&first, draft.image).await;
    let of_second = commits[1].1.clone();

    go_back(&mut home, &copy).await;
    assert_eq!(home.standing(), oldest);
    let first = home.member(&first.device).await;
    assert_eq!(first.call(show(&of_second)).await, Ok(Answer::Done));
    let third = home.standing();
    assert!(![oldest.incarnation, second].contains(&third.incarnation));
    assert_eq!(third.position.0, oldest.position.0 + 3);
    assert!(is_void(&first, draft.image, token).await);
    // The log names both of before now: nothing more begins, not by the receipt of a readmission either.
    for receipt in [&of_first, &of_second] {
        assert_eq!(first.call(show(receipt)).await, Ok(Answer::Done));
        assert_eq!(home.standing(), third);
    }
    first.push(&tree(6, 1, 2).objects).await.unwrap();
    let readmit = Call::Readmit {
        descriptor: None,
        image: draft.image,
        commits,
    };
    assert_eq!(first.call(readmit).await, Ok(Answer::Done));
    assert_eq!(home.standing().incarnation, third.incarnation);
}

#[tokio::test]
async fn a_readmission_alone_proves_it_too() {
    let (mut home, first) = TestHome::founded().await;
    let (draft, head, token) = image(&home, &first, 1).await;
    let copy = copied(&mut home).await;
    let first = home.member(&first.device).await;
    next(&home, &first, draft, head, token, 5).await;
    let commits = history(&first, draft.image).await;
    go_back(&mut home, &copy).await;
    let before = home.standing();
    let first = home.member(&first.device).await;
    let image = draft.image;
    let readmit = Call::Readmit {
        descriptor: None,
        image,
        commits,
    };
    assert_eq!(first.call(readmit).await, Ok(Answer::Done));
    assert_ne!(home.standing().incarnation, before.incarnation);
}

#[tokio::test]
async fn an_image_that_is_gone_comes_back_with_its_name_from_any_member() {
    let (mut home, first) = TestHome::founded().await;
    let second = home.second(&first).await;
    let to = home.path.with_extension("backup");
    crate::backup(&home.places(), &to).await.unwrap();
    let (draft, _, _) = image(&home, &first, 1).await;
    let commits = history(&first, draft.image).await;
    let Ok(Answer::Images { images, .. }) = second.call(Call::Images { after: None }).await else {
        panic!("no images");
    };
    let descriptor = Some(images[0].descriptor.clone());
    replace(&mut home, &to).await;
    let second = home.member(&second.device).await;
    let readmit = |descriptor, commits| Call::Readmit {
        image: draft.image,
        descriptor,
        commits,
    };
    let unnamed = second.call(readmit(None, commits.clone())).await;
    assert_eq!(unnamed, Err(Refusal::UnknownImage));
    let without = second.call(readmit(descriptor.clone(), Vec::new())).await;
    assert_eq!(without, Err(Refusal::UnknownImage));
    let incomplete = second
        .call(readmit(descriptor.clone(), commits.clone()))
        .await;
    assert!(matches!(incomplete, Err(Refusal::Incomplete { .. })));
    second.push(&tree(1, 2, 3).objects).await.unwrap();
    let back = second.call(readmit(descriptor, commits)).await;
    assert_eq!(back, Ok(Answer::Done));
    let Ok(Answer::Images { images: now, .. }) = second.call(Call::Images { after: None }).await
    else {
        panic!("no images");
    };
    assert_eq!(now[0].descriptor, images[0].descriptor);
    assert_eq!((now[0].seq, &now[0].lease), (images[0].seq, &None));
}

#[tokio::test]
async fn backups_are_made_under_load_and_again_into_the_same_folder() {
    let (mut home, founder) = TestHome::founded().await;
    let image_id = ImageId::from_bytes([1; 32]);
    let token = create(&founder, image_id, 1).await;
    let to = home.path.with_extension("backup");
    let blocks: Vec<_> = (0..330)
        .map(|seed| img_testkit::object(seed, 500_000))
        .collect();
    let (ids, mut objects): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
    let (root, bytes) = super::tree::node(1, 0, ids);
    objects.push(bytes);
    let places = home.places();
    // Spools become packs under the backups.
    let backups = async {
        let mut made = Vec::new();
        for _ in 0..4 {
            made.push(crate::backup(&places, &to).await.unwrap());
        }
        made
    };
    let (pushed, made) = tokio::join!(founder.push(&objects), backups);
    pushed.unwrap();
    assert!(made.iter().all(|copied| copied.problems.is_empty()));
    let draft = Draft::first(image_id, root, token);
    let signed = founder.device.commit(&home.roster(), &draft).to_bytes();
    let commit = signed.into();
    founder.call(Call::Commit { commit }).await.unwrap();
    super::crash::packed(&home, 2).await;
    crate::backup(&places, &to).await.unwrap();
    let again = crate::backup(&places, &to).await.unwrap();
    assert_eq!(
        (again.files, again.kept),
        (1, 2),
        "only the open spool is copied"
    );
    let names = |folder: &str| {
        let entries = std::fs::read_dir(to.join(folder)).unwrap();
        entries.count()
    };
    assert_eq!((names("packs"), names("spool")), (2, 1));

    replace(&mut home, &to).await;
    let founder = home.member(&founder.device).await;
    assert_eq!(history(&founder, image_id).await.len(), 1);
    home.stop().await;
    let findings = crate::check(&home.places()).await.unwrap();
    assert_eq!((findings.problems, findings.objects), (Vec::new(), 331));
}

#[tokio::test]
async fn a_backup_spoils_no_other_folder_and_survives_a_crash_of_its_successor() {
    let (mut home, founder) = TestHome::founded().await;
    image(&home, &founder, 1).await;
    let strange = home.path.join("spool");
    let refused = crate::backup(&home.places(), &strange).await;
    assert!(matches!(refused, Err(BackupError::NotABackup(_))));
    let to = home.path.with_extension("backup");
    let refused = crate::restore(&to, &home.path.with_extension("new")).await;
    assert!(matches!(refused, Err(BackupError::NoBackup(_))));
    crate::backup(&home.places(), &to).await.unwrap();
    let (other, _founder) = TestHome::founded().await;
    let refused = crate::backup(&other.places(), &to).await;
    assert!(matches!(refused, Err(BackupError::OtherHome(_))));
    let refused = crate::restore(&to, &home.path).await;
    assert!(matches!(
        refused,
        Err(BackupError::Folder(FolderError::NotEmpty(_)))
    ));
    // A backup is not served by mistake: it is no home.
    let served = crate::Folder::open(&to);
    assert!(matches!(served, Err(FolderError::NoHome(_))));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |name| to.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("backup.key"), 0o600);
    // What a second one left when it was killed.
    std::fs::write(to.join("new.sqlite"), b"torn").unwrap();
    std::fs::write(to.join("packs").join("aa.part"), b"torn").unwrap();
    let leftover = home.path.with_file_name(".home.restored.restoring");
    std::fs::create_dir(&leftover).unwrap();
    std::fs::write(leftover.join("home.key"), b"torn").unwrap();
    replace(&mut home, &to).await;
    assert!(!leftover.exists());
    let founder = home.member(&founder.device).await;
    assert_eq!(
        history(&founder, ImageId::from_bytes([1; 32])).await.len(),
        1
    );
}
