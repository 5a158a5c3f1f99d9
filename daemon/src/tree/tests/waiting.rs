//! Nothing local waits for the network, in a real mount.

use std::fs;
use std::sync::Arc;

use img_index::{FileKind, Inode};
use tokio::sync::watch;

use super::super::{NewInode, Tree};
use super::memory::Slow;
use super::{Place, config};
use crate::mount::{MountConfig, Mounted};

/// More readers than the mount has threads.
const READERS: usize = 16;

#[test]
fn readers_who_wait_for_the_home_hold_nobody_else_up() {
    let place = Place::new();
    let new = NewInode {
        kind: FileKind::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
    };
    // One file more than is read: its contents stay absent.
    for number in 0..=READERS {
        let made = place.run(|tree| tree.make(Inode::ROOT, format!("{number}").as_bytes(), new));
        let (inode, byte) = (made.unwrap().inode, number as u8 + 1);
        place
            .run(|tree| tree.write(inode, 0, &[byte; 100_000], false))
            .unwrap();
    }
    assert!(place.freeze());
    place.seal();

    let folder = tempfile::tempdir().unwrap();
    for part in ["state", "mount"] {
        fs::create_dir(folder.path().join(part)).unwrap();
    }
    let slow = Arc::new(Slow {
        memory: place.source(),
        open: watch::Sender::new(true),
        waiting: watch::Sender::new(0),
    });
    let mut config = config();
    config.root = place.tree().root();
    let handle = place.runtime.handle();
    let source = Arc::clone(&slow);
    let tree = Tree::create(&folder.path().join("state"), config, source, handle).unwrap();
    let mounting = MountConfig {
        dir: folder.path().join("mount"),
        suid: false,
        dev: false,
        shared: false,
    };
    let mut mounted = Mounted::new(tree, &mounting, handle).unwrap();
    let path = |name: &str| folder.path().join("mount").join(name);
    // The metadata is at hand, the contents are not.
    assert_eq!(fs::read_dir(path("")).unwrap().count(), READERS + 1);
    for number in 0..=READERS {
        assert_eq!(
            fs::metadata(path(&number.to_string())).unwrap().len(),
            100_000
        );
    }

    fs::write(path("first"), "what a new file needs is at hand").unwrap();

    slow.open.send_replace(false);
    slow.waiting.send_replace(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let path = path(&number.to_string());
                scope.spawn(move || fs::read(path).unwrap())
            })
            .collect();
        let mut waiting = slow.waiting.subscribe();
        let all = waiting.wait_for(|waiting| *waiting >= READERS);
        place.runtime.block_on(all).unwrap();
        assert!(readers.iter().all(|reader| !reader.is_finished()));

        fs::write(path("local"), "written meanwhile").unwrap();
        fs::rename(path("local"), path("renamed")).unwrap();
        assert_eq!(fs::read(path("renamed")).unwrap(), b"written meanwhile");
        // Not one of those being read: the kernel holds their pages until their contents come.
        let unread = path(&READERS.to_string());
        let file = fs::OpenOptions::new().write(true).open(&unread).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"new", 0).unwrap();
        file.sync_all().unwrap();

        slow.open.send_replace(true);
        for (number, reader) in readers.into_iter().enumerate() {
            let bytes = reader.join().unwrap();
            assert!(bytes == vec![number as u8 + 1; 100_000], "file {number}");
        }
        let mut expected = vec![READERS as u8 + 1; 100_000];
        expected[..3].copy_from_slice(b"new");
        assert!(fs::read(&unread).unwrap() == expected);
    });
    mounted.unmount().unwrap();
}
