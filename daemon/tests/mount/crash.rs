//! What was synced survives the daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use imgd::mount::detach_dead;
use imgd::tree::Tree;
use rustix::io::Errno;

use crate::support::{Nothing, Place, config, mount, names, run};

/// Set for the process that [`serves_until_it_is_killed`] is to be.
const CHILD: &str = "IMGD_TEST_SERVE";

/// The child of the next test; as a test of its own it has nothing to do.
#[test]
fn serves_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else {
        return;
    };
    let folder = std::path::PathBuf::from(folder);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let source = Arc::new(Nothing);
    let tree = Tree::create(&folder.join("state"), config(), source, runtime.handle()).unwrap();
    let mounted = mount(tree, &folder.join("mount"), runtime.handle());
    writeln!(std::io::stdout(), "\nmounted").unwrap();
    runtime.block_on(mounted.ended());
}

#[test]
fn what_was_synced_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["state", "mount", "other"] {
        fs::create_dir(folder.path().join(part)).unwrap();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::serves_until_it_is_killed", "--nocapture"])
        .env(CHILD, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "mounted"));

    let mut place = Place::adopt(folder);
    place.shell("mkdir dir; seq 10000 > dir/synced; sync dir/synced; ln dir/synced link");
    let mut unlinked = File::create_new(place.path("unlinked")).unwrap();
    unlinked.write_all(b"gone with its last close").unwrap();
    fs::remove_file(place.path("unlinked")).unwrap();
    let mut appended = OpenOptions::new()
        .append(true)
        .open(place.path("dir/synced"))
        .unwrap();
    appended.write_all(b"and more\n").unwrap();
    appended.sync_data().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    let error = fs::read(place.path("link")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    assert!(detach_dead(&place.root()).unwrap());
    assert!(!detach_dead(&place.root()).unwrap());
    place.recover();
    assert_eq!(names(&place.root()), ["dir", "link"]);
    place.shell("diff link <(seq 10000; echo and more); test $(stat -c %h link) = 2");

    // The file that nothing names any more goes with the next checkpoint.
    let tree = Arc::clone(place.mounted.as_ref().unwrap().tree());
    assert!(tree.stats().dirty_bytes > 48_903);
    let cut = tree.freeze().unwrap().unwrap();
    assert_eq!(cut.dirty_bytes, 48_903);
    place.shell("echo after > after; diff link <(seq 10000; echo and more)");
}

#[test]
fn a_tree_comes_back_as_it_was_unmounted() {
    let mut place = Place::new();
    place.shell("mkdir -p a/b; seq 1000 > a/b/c; ln -s a soft; setfattr -n user.x -v y a");
    place.unmount();
    place.recover();
    place.shell(
        "diff a/b/c <(seq 1000); test $(readlink soft) = a; getfattr -n user.x a > /dev/null",
    );
    place.shell("touch new; rm -r a");
    run("umount", [place.root()]);
    let mounted = place.mounted.take().unwrap();
    place.runtime.block_on(mounted.ended());
    drop(mounted);
    place.recover();
    assert_eq!(names(&place.root()), ["new", "soft"]);
}
