//! Who keeps files of a folder open, read from /proc.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{ApiError, Kind};

/// A process that uses a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pid: u32,
    command: String,
}

/// The processes that have files below a folder open, stand in it or map files of it. What this user may not
/// look at is not found. Reads links only, so that it never asks the mount itself.
pub(super) fn users_of(dir: &Path) -> Vec<User> {
    processes(|process| uses(process, dir))
}

/// The processes that have files below a folder open for writing, or map them so.
pub(super) fn writers_of(dir: &Path) -> Vec<User> {
    processes(|process| {
        has_open(process, |link, to| {
            // The link's own permissions say how the file was opened.
            let opened = || {
                link.symlink_metadata()
                    .map(|link| link.permissions().mode())
            };
            to.starts_with(dir) && opened().is_ok_and(|mode| mode & 0o200 != 0)
        })
    })
}

fn processes(is_meant: impl Fn(&Path) -> bool) -> Vec<User> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id();
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && is_meant(&Path::new("/proc").join(pid.to_string())))
        .map(|pid| User {
            pid,
            command: command(pid),
        })
        .take(USERS_MAX)
        .collect()
}

/// The error that names them.
pub(super) fn busy(dir: &Path, users: &[User]) -> ApiError {
    let hint = "Close them there (also shells that stand in the folder), then ask again.";
    naming(format!("Files in {} are open", dir.display()), users, hint)
}

/// The error that names who writes.
pub(super) fn written(dir: &Path, writers: &[User]) -> ApiError {
    naming(
        format!(
            "Nothing was restored: files in {} are open for writing",
            dir.display()
        ),
        writers,
        "Close them there and ask again, or add --force: what they have open is stale then, and they get errors when they write.",
    )
}

fn naming(what: String, users: &[User], hint: &str) -> ApiError {
    let named: Vec<_> = users
        .iter()
        .map(|user| format!("{} ({})", user.command, user.pid))
        .collect();
    let message = if named.is_empty() {
        format!("{what}.")
    } else {
        format!("{what} in {}.", named.join(", "))
    };
    let processes: Vec<Value> = users
        .iter()
        .map(|user| json!({ "pid": user.pid, "command": user.command }))
        .collect();
    ApiError::new(Kind::Busy, message, hint).with("processes", processes)
}

/// The error that says which application runs.
pub(super) fn running(name: &str, dir: &Path, pids: &[u32]) -> ApiError {
    let users = pids.iter().take(USERS_MAX).map(|pid| User {
        pid: *pid,
        command: command(*pid),
    });
    let users: Vec<_> = users.collect();
    let first = users.first();
    let first = first.map_or(String::new(), |user| {
        format!(": {} ({})", user.command, user.pid)
    });
    let processes: Vec<Value> = users
        .iter()
        .map(|user| json!({ "pid": user.pid, "command": user.command }))
        .collect();
    ApiError::new(
        Kind::Busy,
        format!("{name} runs already at {}{first}.", dir.display()),
        format!(
            "Go on there, or end it; `imgctl status {}` shows when it has ended.",
            dir.display()
        ),
    )
    .with("processes", processes)
}

fn uses(process: &Path, dir: &Path) -> bool {
    let inside = |link: &Path| std::fs::read_link(link).is_ok_and(|to| to.starts_with(dir));
    if ["cwd", "root", "exe"]
        .iter()
        .any(|link| inside(&process.join(link)))
    {
        return true;
    }
    has_open(process, |_, to| to.starts_with(dir))
}

/// Whether one of a process's open or mapped files is meant, by its link in /proc and where that leads.
fn has_open(process: &Path, is_meant: impl Fn(&Path, &Path) -> bool) -> bool {
    let is_meant = |link: PathBuf| std::fs::read_link(&link).is_ok_and(|to| is_meant(&link, &to));
    ["fd", "map_files"].iter().any(|folder| {
        let links = std::fs::read_dir(process.join(folder));
        links.is_ok_and(|links| links.flatten().any(|link| is_meant(link.path())))
    })
}

fn command(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.map_or_else(|_| "?".into(), |name| name.trim().to_owned())
}

/// Processes that are named at most.
const USERS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_that_stands_in_a_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        assert!(users_of(&dir).is_empty());
        let mut child = Command::new("cat")
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It has started once it echoes.
        child.stdin.as_mut().unwrap().write_all(b"x\n").unwrap();
        let mut echoed = [0; 2];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut echoed).unwrap();
        let users = users_of(&dir);
        assert!(writers_of(&dir).is_empty(), "it only stands there");
        let error = busy(&dir, &users);
        drop(child.stdin.take());
        child.wait().unwrap();
        let expected = User {
            pid: child.id(),
            command: "cat".into(),
        };
        assert_eq!(users, [expected]);
        assert!(error.message.contains(&format!("cat ({})", child.id())));
        assert_eq!(error.to_json()["processes"][0]["command"], "cat");
    }

    #[test]
    fn a_process_that_writes_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let files = [("read", false), ("write", true)].map(|(name, writes)| {
            let path = dir.join(name);
            std::fs::write(&path, "x").unwrap();
            std::fs::OpenOptions::new()
                .read(!writes)
                .write(writes)
                .open(path)
                .unwrap()
        });
        let named = files.map(|file| {
            let mut child = Command::new("sleep")
                .arg("1000")
                .stdin(Stdio::from(file))
                .spawn()
                .unwrap();
            let writers = writers_of(&dir);
            child.kill().unwrap();
            child.wait().unwrap();
            writers.iter().map(|user| user.pid).collect::<Vec<_>>() == [child.id()]
        });
        assert_eq!(named, [false, true]);
    }
}
