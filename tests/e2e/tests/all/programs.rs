//! Real programs inside a mount.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{World, tree};

/// Runs a shell script in `dir` and expects it to succeed.
fn shell(dir: &Path, script: &str) -> Result<String> {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .output()?;
    ensure!(
        output.status.success(),
        "{script}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn git_clones_commits_and_checks_clean_on_both_devices() -> Result<()> {
    let world = World::new()?;
    let origin = world.path("origin");
    fs::create_dir(&origin)?;
    shell(
        &origin,
        "git init -q . && git config user.email a@b && git config user.name n
         for i in $(seq 300); do mkdir -p d$((i % 17)); seq $i $((i * 3)) > d$((i % 17))/f$i; done
         git add . && git commit -qm one && git gc -q",
    )?;
    let a = world.founder("a")?;
    a.json(&["create", "code"])?;
    let mount = a.checkout("code", &[])?;
    let clone = format!("git clone -q --no-hardlinks {} repo", origin.display());
    shell(&mount, &clone)?;
    shell(
        &mount.join("repo"),
        "git config user.email a@b && git config user.name n && git fsck --full --strict
         git checkout -qb work && sed -i s/1/one/ d1/* && git commit -qam two && git gc -q && git fsck --full
         test -z \"$(git status --porcelain)\"",
    )?;
    a.json(&["release", "code"])?;
    let b = world.joined("b", &a)?;
    let mount = b.checkout("code", &[])?;
    shell(
        &mount.join("repo"),
        "git fsck --full && git log --oneline | wc -l | grep -qx 2 && git diff --quiet",
    )?;
    Ok(())
}

#[test]
fn a_project_is_unpacked_built_and_run() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "build"])?;
    let mount = a.checkout("build", &[])?;
    shell(
        &mount,
        r#"mkdir src && for i in $(seq 30); do echo "int f$i(int x) { return x + $i; }" > src/f$i.c; done
        { for i in $(seq 30); do echo "int f$i(int);"; done
          echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'
          for i in $(seq 30); do echo "s = f$i(s);"; done; echo 'printf("%d\n", s); return 0; }'; } > src/main.c
        tar -cf src.tar src && rm -r src && tar -xf src.tar
        for f in src/*.c; do gcc -c -o ${f%.c}.o $f; done && gcc -o sum src/*.o && test "$(./sum)" = 465"#,
    )?;
    Ok(())
}

#[test]
fn sqlite_stays_sound_while_it_is_written_and_cut() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "db"])?;
    let mount = a.checkout("db", &[])?;
    for journal in ["WAL", "DELETE"] {
        let path = mount.join(format!("{journal}.db"));
        let db = rusqlite::Connection::open(&path)?;
        db.pragma_update(None, "journal_mode", journal)?;
        db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, v TEXT)", [])?;
        for n in 0..200 {
            db.execute("INSERT INTO t (v) VALUES (hex(randomblob(500)))", [])?;
            if n % 50 == 25 {
                a.json(&["checkpoint", "db"])?;
            }
        }
        let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(verdict == "ok", "{verdict}");
    }
    a.json(&["release", "db"])?;
    let b = world.joined("b", &a)?;
    let mount = b.checkout("db", &[])?;
    for journal in ["WAL", "DELETE"] {
        let db = rusqlite::Connection::open(mount.join(format!("{journal}.db")))?;
        let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
        ensure!(verdict == "ok" && rows == 200, "{verdict}, {rows} rows");
    }
    Ok(())
}

#[test]
fn forty_thousand_files_of_every_kind_survive_cp_and_the_way_home() -> Result<()> {
    let world = World::new()?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    crate::tour::varied_tree(&source)?;
    for folder in 0..200 {
        let path = source.join(format!("many/{folder}"));
        fs::create_dir_all(&path)?;
        for file in 0..200 {
            fs::write(
                path.join(format!("file-{file}")),
                format!("{folder}/{file}"),
            )?;
        }
    }
    let a = world.founder("a")?;
    a.json(&["create", "many"])?;
    let mount = a.checkout("many", &[])?;
    let copy = mount.join("copy");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&source, &copy])
        .status()?;
    ensure!(copied.success());
    let entries = tree::assert_equal(&source, &copy)?;
    ensure!(entries > 40_000);
    a.json(&["release", "many"])?;
    let b = world.joined("b", &a)?;
    let mount = b.checkout("many", &[])?;
    tree::assert_equal(&source, &mount.join("copy"))?;
    Ok(())
}

#[test]
fn a_raw_disk_comes_back_clean() -> Result<()> {
    let world = World::new()?;
    let files = world.path("files");
    fs::create_dir(&files)?;
    crate::tour::varied_tree(&files)?;
    let disk = world.path("disk.raw");
    shell(
        &world.path(""),
        &format!(
            "mke2fs -q -t ext4 -d {} {} 2G",
            files.display(),
            disk.display()
        ),
    )?;
    let a = world.founder("a")?;
    a.json(&["create", "disk", "--from", disk.to_str().context("UTF-8")?])?;
    let mount = a.checkout("disk", &[])?;
    shell(
        &mount,
        "e2fsck -fn disk.img && debugfs -w -R 'write /etc/hostname planted' disk.img && e2fsck -fn disk.img",
    )?;
    a.json(&["release", "disk"])?;
    let b = world.joined("b", &a)?;
    let mount = b.checkout("disk", &[])?;
    shell(
        &mount,
        "e2fsck -fn disk.img && debugfs -R 'cat planted' disk.img | cmp - /etc/hostname",
    )?;
    let size = fs::metadata(mount.join("disk.img"))?.len();
    ensure!(size == 2 << 30, "{size}");
    Ok(())
}

#[test]
fn a_hundred_thousand_entries_are_deleted_while_listed() -> Result<()> {
    let world = World::new()?;
    let a = world.founder("a")?;
    a.json(&["create", "wide"])?;
    let mount = a.checkout("wide", &[])?;
    let wide = mount.join("wide");
    fs::create_dir(&wide)?;
    for n in 0..100_000 {
        fs::File::create(wide.join(format!("entry-{n}")))?;
    }
    a.json(&["checkpoint", "wide"])?;
    let mut seen = 0;
    for entry in fs::read_dir(&wide)? {
        fs::remove_file(entry?.path())?;
        seen += 1;
    }
    ensure!(seen == 100_000, "{seen} entries were listed");
    fs::remove_dir(&wide)?;
    Ok(())
}

#[test]
fn access_lists_survive_the_way_home_and_every_kind_of_copy() -> Result<()> {
    let world = World::new()?;
    let source = world.path("source");
    fs::create_dir(&source)?;
    shell(
        &source,
        "mkdir folder && echo text > folder/file && echo plain > plain
         setfacl -m u:1234:rw,g:77:r folder/file && setfacl -d -m u:1234:rwx folder",
    )?;
    let a = world.founder("a")?;
    a.json(&[
        "create",
        "tree",
        "--from",
        source.to_str().context("UTF-8")?,
    ])?;
    let mount = a.checkout("tree", &[])?;
    tree::assert_equal(&source, &mount)?;
    let lists = |top: &Path| shell(top, "find . -print0 | sort -z | xargs -0 getfacl -n --");
    ensure!(lists(&mount)? == lists(&source)?);
    // Made in the mount: inherited, changed and copied.
    shell(
        &mount,
        "echo new > folder/new && setfacl -m g:5:x plain && cp -a folder copied",
    )?;
    let before = lists(&mount)?;
    ensure!(before.contains("group:5:--x") && before.matches("default:user:1234:rwx").count() == 2);
    a.json(&["release", "tree"])?;
    let b = world.joined("b", &a)?;
    let mount = b.checkout("tree", &[])?;
    ensure!(lists(&mount)? == before);
    let (tar, folder) = (world.path("tree.tar"), world.path("folder"));
    for dest in [&tar, &folder] {
        b.json(&["export", "tree", dest.to_str().context("UTF-8")?])?;
    }
    ensure!(lists(&folder)? == before);
    fs::create_dir(world.path("unpacked"))?;
    shell(
        &world.path("unpacked"),
        "tar --acls --numeric-owner -xpf ../tree.tar",
    )?;
    ensure!(lists(&world.path("unpacked"))? == before);
    b.json(&["create", "again", "--from", tar.to_str().context("UTF-8")?])?;
    ensure!(lists(&b.checkout("again", &[])?)? == before);
    Ok(())
}
