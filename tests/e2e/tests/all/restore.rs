//! Going back to an older state, on the live mount.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Device, World, tree, wait_for};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde_json::Value;

use crate::scene::{held, moment};

/// Kills in a row.
const KILLS: u32 = 8;
/// What a restore takes.
const LONGEST: Duration = Duration::from_millis(200);

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("no text")?.to_owned())
}

fn commit(device: &Device, image: &str) -> Result<String> {
    text(&device.json(&["commit", image])?["commit"])
}

fn checkpoint(device: &Device, image: &str, message: &str) -> Result<String> {
    text(&device.json(&["checkpoint", image, "-m", message])?["checkpoint"])
}

fn rows(device: &Device, image: &str) -> Result<Vec<Value>> {
    match device.json(&["log", image])? {
        Value::Array(rows) => Ok(rows),
        row => Ok(vec![row]),
    }
}

/// An image's state as its export shows it.
fn exported(world: &World, device: &Device, at: &str) -> Result<PathBuf> {
    let dest = world.path(&format!("export-{at}"));
    let there = dest.to_str().context("a path")?;
    device.json(&["export", "vm", there, "--at", at])?;
    Ok(dest)
}

/// A program that says what it sees whenever it is asked.
struct Asked {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Asked {
    fn start(program: &str, args: &[&str], dir: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self {
            ask: child.stdin.take().context("a pipe")?,
            answers: BufReader::new(child.stdout.take().context("a pipe")?),
            child,
        })
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        writeln!(self.ask, "{question}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says the first bytes of a file, as a shared map of it shows them.
const MAPPER: &str = "
import mmap, sys
file = open('changed')
shown = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
for line in sys.stdin:
    print(shown[:5].decode(), flush=True)
";

/// A tree with something of everything, and the same after all sorts of changes.
fn furnish(mount: &Path) -> Result<()> {
    for folder in ["stays/deep", "moves/inner", "goes", "turns"] {
        fs::create_dir_all(mount.join(folder))?;
        for number in 0..5 {
            let path = mount.join(folder).join(format!("file-{number}"));
            fs::write(path, format!("{folder} {number}"))?;
        }
    }
    fs::write(mount.join("changed"), "first".repeat(20_000))?;
    fs::write(mount.join("shrinks"), vec![7; 300_000])?;
    fs::write(mount.join("small"), "small")?;
    fs::write(mount.join("deleted"), "here again")?;
    fs::hard_link(mount.join("small"), mount.join("goes/hard"))?;
    symlink("small", mount.join("link"))?;
    symlink("goes", mount.join("replaced"))?;
    let set = |path: &str, value: &[u8]| {
        rustix::fs::setxattr(mount.join(path), "user.note", value, XattrFlags::empty())
    };
    set("small", b"one")?;
    set("stays", &[1; 3_000])?;
    Ok(())
}

fn change(mount: &Path) -> Result<()> {
    fs::write(mount.join("changed"), "after".repeat(30_000))?;
    let shrinks = fs::File::options()
        .write(true)
        .open(mount.join("shrinks"))?;
    shrinks.set_len(100)?;
    shrinks.write_all_at(b"patched", 50)?;
    drop(shrinks);
    fs::remove_file(mount.join("deleted"))?;
    fs::remove_dir_all(mount.join("goes"))?;
    fs::rename(mount.join("moves"), mount.join("stays/moved"))?;
    fs::remove_dir_all(mount.join("turns"))?;
    fs::write(mount.join("turns"), "a file now")?;
    fs::remove_file(mount.join("link"))?;
    symlink("changed", mount.join("link"))?;
    fs::remove_file(mount.join("replaced"))?;
    fs::create_dir(mount.join("replaced"))?;
    fs::write(mount.join("replaced/in"), "in")?;
    fs::hard_link(mount.join("small"), mount.join("stays/hard"))?;
    fs::set_permissions(
        mount.join("stays/deep/file-1"),
        fs::Permissions::from_mode(0o600),
    )?;
    let set = |path: &str, value: &[u8]| {
        rustix::fs::setxattr(mount.join(path), "user.note", value, XattrFlags::empty())
    };
    set("small", b"two")?;
    rustix::fs::removexattr(mount.join("stays"), "user.note")?;
    fs::write(mount.join("only later"), "later")?;
    Ok(())
}

#[test]
fn a_restored_mount_is_the_older_state_to_the_byte_and_programs_go_on() -> Result<()> {
    let (world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    furnish(&mount)?;
    let old = commit(&laptop, "vm")?;
    change(&mount)?;
    let new = commit(&laptop, "vm")?;
    let (before, after) = (
        exported(&world, &laptop, &old)?,
        exported(&world, &laptop, &new)?,
    );

    // Everything warm: contents, attributes, listings, and names that lead nowhere.
    tree::assert_equal(&after, &mount)?;
    for name in ["deleted", "goes", "moves", "goes/hard", "turns/file-1"] {
        ensure!(!mount.join(name).exists(), "{name}");
    }
    let mut handle = fs::File::open(mount.join("changed"))?;
    let mut shell = Asked::start("bash", &["-s"], &mount.join("stays/deep"))?;
    let mut inside = Asked::start("bash", &["-s"], &mount.join("stays/moved/inner"))?;
    let mut mapper = Asked::start("python3", &["-c", MAPPER], &mount)?;
    ensure!(mapper.ask("")? == "after");
    ensure!(shell.ask("cat file-2; echo")? == "stays/deep 2");
    ensure!(inside.ask("cat file-2; echo")? == "moves/inner 2");

    let restored = laptop.json(&["restore", "vm", "--to", &old])?;
    ensure!(
        restored["restored_to"] == *old && restored["saved"].is_null(),
        "{restored}"
    );
    ensure!(
        restored["replaced"] == *new && restored["unchanged"] == false,
        "{restored}"
    );
    tree::assert_equal(&before, &mount)?;
    let mut read = String::new();
    handle.seek(SeekFrom::Start(0))?;
    handle.read_to_string(&mut read)?;
    ensure!(read == "first".repeat(20_000), "{} bytes", read.len());
    ensure!(mapper.ask("")? == "first");
    ensure!(shell.ask("cat file-2; echo")? == "stays/deep 2");
    ensure!(shell.ask("/bin/pwd")? == mount.join("stays/deep").display().to_string());
    ensure!(inside.ask("cat file-2; echo")? == "moves/inner 2");

    // Unsaved work is saved by the way back, and the way forth brings it again.
    fs::write(mount.join("unsaved"), "mine")?;
    let forth = laptop.json(&["restore", "vm", "--to", &new[..10]])?;
    let saved = text(&forth["saved"])?;
    tree::assert_equal(&after, &mount)?;
    ensure!(mapper.ask("")? == "after");
    ensure!(!mount.join("unsaved").exists());
    laptop.json(&["restore", "vm", "--to", &saved])?;
    ensure!(fs::read_to_string(mount.join("unsaved"))? == "mine");
    fs::remove_file(mount.join("unsaved"))?;
    laptop.json(&["restore", "vm", "--to", "head~1"])?;
    tree::assert_equal(&before, &mount)?;

    // The log has all of it, and the next commit has the head as parent and the old content.
    let log = rows(&laptop, "vm")?;
    let said = |text: String| {
        let mut rows = log.iter();
        rows.any(|row| row["message"] == *text && row["home"] == false)
    };
    ensure!(
        said("before restore".into()) && said(format!("restored to {}", &old[..10])),
        "{log:?}"
    );
    wait_for("the restored state to be staged", || {
        let staged = laptop.status("vm")?["staged"].clone();
        Ok(staged.is_string().then_some(()))
    })?;
    let committed = laptop.json(&["commit", "vm", "-m", "back"])?;
    ensure!(committed["seq"] == 4, "{committed}");
    let head = &rows(&laptop, "vm")?
        .into_iter()
        .find(|row| row["seq"] == 4)
        .context("the head")?;
    ensure!(head["parent"] == *new, "{head}");
    ensure!(laptop.imgctl(&["diff", "vm", &old, "head"])?.stdout == "Nothing differs.\n");
    drop((handle, shell, inside, mapper));
    laptop.json(&["release", "vm"])?;
    tree::assert_equal(&before, &desktop.checkout("vm", &[])?)?;
    Ok(())
}

#[test]
fn only_what_differs_is_fetched_and_forgotten() -> Result<()> {
    let world = World::new()?;
    let laptop = world.founder("laptop")?;
    let source = world.path("source");
    for folder in 0..40 {
        let folder = source.join(format!("folder-{folder}"));
        fs::create_dir_all(&folder)?;
        for file in 0..100 {
            fs::write(folder.join(format!("file-{file}")), format!("{file}"))?;
        }
    }
    laptop.json(&["create", "vm", "--from", source.to_str().context("a path")?])?;
    let mount = laptop.checkout("vm", &[])?;
    for folder in 0..10 {
        fs::write(mount.join(format!("folder-{folder}/file-7")), "changed")?;
    }
    commit(&laptop, "vm")?;
    laptop.json(&["release", "vm"])?;

    // On a device that has next to nothing.
    let desktop = world.joined("desktop", &laptop)?;
    let mount = desktop.checkout("vm", &[])?;
    fs::write(mount.join("own"), "own")?;
    ensure!(fs::read_to_string(mount.join("folder-3/file-7"))? == "changed");
    let before = desktop.status("vm")?["fetched_objects"].as_u64();
    let restored = desktop.json(&["restore", "vm", "--to", "head~1"])?;
    let fetched = desktop.status("vm")?["fetched_objects"].as_u64();
    let fetched = fetched.zip(before).map(|(after, before)| after - before);
    // Ten files, one that is gone with its name, and the folder that it was in.
    ensure!(restored["differing"] == 13, "{restored}");
    ensure!(fetched.is_some_and(|fetched| fetched < 40), "{fetched:?}");
    ensure!(fs::read_to_string(mount.join("folder-3/file-7"))? == "7");
    ensure!(!mount.join("own").exists());
    Ok(())
}

#[test]
fn who_writes_stands_in_the_way_and_gets_errors_where_it_is_forced() -> Result<()> {
    let (_world, laptop, _desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("file"), "old")?;
    let old = commit(&laptop, "vm")?;
    fs::write(mount.join("file"), "new and longer")?;
    let log = fs::File::options().append(true).open(mount.join("file"))?;
    let mut child = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .spawn()?;
    drop(log);
    let refused = laptop.fails(1, &["restore", "vm", "--to", &old])?;
    let named = refused.to_string();
    ensure!(
        named.contains(&child.id().to_string()) && named.contains("--force"),
        "{named}"
    );
    ensure!(fs::read_to_string(mount.join("file"))? == "new and longer");
    ensure!(rows(&laptop, "vm")?.iter().all(|row| row["home"] == true));
    child.kill()?;
    child.wait()?;

    let mut writer = fs::File::options()
        .read(true)
        .append(true)
        .open(mount.join("file"))?;
    let reader = fs::File::open(mount.join("file"))?;
    let restored = laptop.json(&["restore", "vm", "--to", &old, "--force"])?;
    ensure!(restored["saved"].is_string(), "{restored}");
    let refused = writer.write_all(b"lost?").expect_err("the handle is stale");
    ensure!(
        Errno::from_io_error(&refused) == Some(Errno::STALE),
        "{refused}"
    );
    let mut bytes = [0; 8];
    ensure!(reader.read_at(&mut bytes, 0)? == 3 && bytes.starts_with(b"old"));
    ensure!(fs::read_to_string(mount.join("file"))? == "old");
    // A new handle works, and what was forced away can be had.
    drop(writer);
    fs::write(mount.join("file"), "newest")?;
    laptop.json(&["restore", "vm", "--to", &text(&restored["saved"])?])?;
    ensure!(fs::read_to_string(mount.join("file"))? == "new and longer");
    Ok(())
}

#[test]
fn a_checkpoint_is_there_after_a_commit_a_restart_and_without_the_home() -> Result<()> {
    let (mut world, mut laptop, _desktop) = held()?;
    let mount = laptop.work().join("vm");
    fs::write(mount.join("draft"), "one")?;
    let one = checkpoint(&laptop, "vm", "the first draft")?;
    fs::write(mount.join("draft"), "two")?;
    let two = commit(&laptop, "vm")?;
    for number in 0..20 {
        // More than are sealed before the outbox is trimmed.
        fs::write(mount.join("draft"), format!("later {number}"))?;
        checkpoint(&laptop, "vm", "")?;
    }
    commit(&laptop, "vm")?;
    let shown = rows(&laptop, "vm")?;
    let shown = shown.iter().find(|row| row["commit"] == *one);
    ensure!(shown.is_some_and(|row| row["home"] == false), "{shown:?}");

    laptop.kill()?;
    laptop.restart()?;
    world.home.kill()?;
    laptop.json(&["restore", "vm", "--to", &one[..8]])?;
    ensure!(fs::read_to_string(mount.join("draft"))? == "one");
    laptop.json(&["restore", "vm", "--to", &two])?;
    ensure!(fs::read_to_string(mount.join("draft"))? == "two");
    laptop
        .fails(3, &["restore", "vm", "--to", "0123456789"])
        .or_else(|_| {
            // What is not known here may be known at home.
            laptop.fails(6, &["restore", "vm", "--to", "0123456789"])
        })?;
    // Without a word: to the commit that the checkout stands on.
    let restored = laptop.json(&["restore", "vm"])?;
    ensure!(restored["saved"].is_null(), "{restored}");
    ensure!(fs::read_to_string(mount.join("draft"))? == "later 19");
    let again = laptop.json(&["restore", "vm"])?;
    ensure!(
        again["unchanged"] == true && again["saved"].is_null(),
        "{again}"
    );

    world.home.start()?;
    laptop.json(&["restore", "vm", "--to", &one])?;
    wait_for("the commit", || {
        let committed = laptop.imgctl(&["commit", "vm"])?;
        Ok(committed.ok().then_some(()))
    })?;
    laptop.json(&["release", "vm"])?;
    let mount = laptop.checkout("vm", &[])?;
    ensure!(fs::read_to_string(mount.join("draft"))? == "one");
    Ok(())
}

#[test]
fn what_is_neither_here_nor_to_be_had_changes_nothing() -> Result<()> {
    let (mut world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    for number in 0..500 {
        let path = mount.join(format!("file-{number}"));
        fs::write(path, number.to_string().repeat(1_000))?;
    }
    let old = commit(&laptop, "vm")?;
    for number in 0..500 {
        fs::remove_file(mount.join(format!("file-{number}")))?;
    }
    commit(&laptop, "vm")?;
    laptop.json(&["release", "vm"])?;
    let mount = desktop.checkout("vm", &[])?;
    rows(&desktop, "vm")?;
    fs::write(mount.join("own"), "own")?;
    world.home.kill()?;
    let refused = desktop.fails(6, &["restore", "vm", "--to", &old])?;
    let told = refused["message"].as_str().unwrap_or_default();
    ensure!(told.contains("nothing was changed"), "{refused}");
    ensure!(fs::read_to_string(mount.join("own"))? == "own" && !mount.join("file-3").exists());
    world.home.start()?;
    wait_for("the home to be back", || {
        let restored = desktop.imgctl(&["restore", "vm", "--to", &old])?;
        Ok(restored.ok().then_some(()))
    })?;
    ensure!(mount.join("file-3").exists() && !mount.join("own").exists());
    Ok(())
}

#[test]
fn every_kind_of_checkout_can_go_back() -> Result<()> {
    let (_world, laptop, desktop) = held()?;
    let mount = laptop.work().join("vm");
    let first = commit(&laptop, "vm")?;
    fs::write(mount.join("second"), "2")?;
    commit(&laptop, "vm")?;

    // One without a lease, whose changes are its own.
    let private = desktop.checkout("vm", &["--read-only"])?;
    fs::write(private.join("mine"), "mine")?;
    let restored = desktop.json(&["restore", "vm", "--to", &first])?;
    ensure!(!private.join("second").exists() && !private.join("mine").exists());
    desktop.json(&["restore", "vm", "--to", &text(&restored["saved"])?])?;
    ensure!(private.join("second").exists() && private.join("mine").exists());
    desktop.json(&["release", "vm", "--discard"])?;

    // One that somebody has unmounted.
    let unmounted = Command::new("umount").arg(&mount).status()?;
    ensure!(unmounted.success());
    wait_for("the unmount to be noticed", || {
        Ok((laptop.status("vm")?["mounted"] == false).then_some(()))
    })?;
    laptop.json(&["restore", "vm", "--to", &first])?;
    laptop.json(&["checkout", "vm"])?;
    ensure!(mount.join("first").exists() && !mount.join("second").exists());

    // A branch, also to what was before it was one.
    fs::write(mount.join("third"), "3")?;
    laptop.json(&["commit", "vm", "--branch", "other"])?;
    fs::write(mount.join("fourth"), "4")?;
    laptop.json(&["commit", "other"])?;
    laptop.json(&["restore", "other", "--to", "head~2"])?;
    ensure!(mount.join("second").exists() && !mount.join("third").exists());
    laptop.json(&["restore", "other", "--to", &first])?;
    ensure!(!mount.join("second").exists());
    laptop.fails(3, &["restore", "other", "--to", "head~9"])?;
    laptop.json(&["restore", "other"])?;
    ensure!(mount.join("third").exists() && mount.join("fourth").exists());

    // An orphan.
    fs::write(mount.join("fourth"), "changed")?;
    let draft = checkpoint(&laptop, "other", "draft")?;
    // What is staged meanwhile would be another state to steal.
    wait_for("the draft to be staged", || {
        let log = rows(&laptop, "other")?;
        let mut log = log.iter().filter(|row| row["commit"] == *draft);
        Ok(log.any(|row| row["staged"].is_string()).then_some(()))
    })?;
    desktop.json(&["steal", "other"])?;
    wait_for("the loss to be noticed", || {
        let orphan = laptop.status("other")?["state"] == "orphan";
        Ok(orphan.then_some(()))
    })?;
    laptop.json(&["restore", "other"])?;
    ensure!(fs::read_to_string(mount.join("fourth"))? == "4");
    laptop.json(&["restore", "other", "--to", &draft])?;
    ensure!(fs::read_to_string(mount.join("fourth"))? == "changed");
    Ok(())
}

#[test]
fn a_daemon_killed_during_a_restore_is_at_one_state_or_the_other() -> Result<()> {
    let (world, mut laptop, _desktop) = held()?;
    let mount = laptop.work().join("vm");
    furnish(&mount)?;
    let old = commit(&laptop, "vm")?;
    change(&mount)?;
    let new = commit(&laptop, "vm")?;
    let exports = [
        exported(&world, &laptop, &old)?,
        exported(&world, &laptop, &new)?,
    ];
    let mut went = 0;
    for round in 0..KILLS {
        let (from, to) = match round % 2 {
            0 => (1, 0),
            _ => (0, 1),
        };
        let target = [&old, &new][to];
        // Something that is nowhere else.
        let mine = mount.join("mine");
        fs::write(&mine, round.to_string())?;
        fs::File::open(&mine)?.sync_all()?;
        laptop.kill_during(&["restore", "vm", "--to", target], moment(round, LONGEST))?;
        wait_for("the mount to be back", || {
            Ok(fs::read_dir(&mount).is_ok().then_some(()))
        })?;
        if mine.exists() {
            ensure!(fs::read_to_string(&mine)? == round.to_string());
            fs::remove_file(&mine)?;
            // Its folder's time is another, so only what is in it is compared.
            same_names(&exports[from], &mount)?;
            laptop.json(&["restore", "vm", "--to", target])?;
        } else {
            went += 1;
            let log = rows(&laptop, "vm")?;
            let mut saved = log.iter().filter(|row| row["message"] == "before restore");
            let saved = text(&saved.next().context("what was replaced is saved")?["commit"])?;
            laptop.json(&["restore", "vm", "--to", &saved])?;
            ensure!(fs::read_to_string(&mine)? == round.to_string(), "{round}");
            laptop.json(&["restore", "vm", "--to", target])?;
        }
        tree::assert_equal(&exports[to], &mount)?;
    }
    eprintln!("{went} of {KILLS} had gone back when the daemon was killed");
    laptop.json(&["commit", "vm"])?;
    Ok(())
}

fn same_names(left: &Path, right: &Path) -> Result<()> {
    let names = |dir: &Path| -> Result<Vec<_>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    ensure!(names(left)? == names(right)?);
    Ok(())
}
