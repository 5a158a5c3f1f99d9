//! What the demo does, step by step.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::corpus::Corpus;
use super::manifest::{self, Manifest};
use super::stage::Stage;
use crate::shell::say;

/// A device of the demo: a daemon with its state and socket.
struct Device<'a> {
    stage: &'a Stage,
    name: &'static str,
    socket: PathBuf,
}

/// Tells it all; an error says which step failed.
pub(crate) fn tell(stage: &Stage, corpus: &Corpus) -> Result<()> {
    let began = Instant::now();
    let source = &corpus.path;

    step("A home and a first device");
    let founding = start_home(stage)?;
    let laptop = Device::start(stage, "laptop")?;
    laptop.imgctl(&["join", &founding, "--name", "laptop"])?;
    say("laptop founded the home; its recovery words were shown once.");

    step(&format!(
        "Import {} ({})",
        source.display(),
        bytes(corpus.bytes)
    ));
    let timer = Instant::now();
    let created = laptop.imgctl(&["create", "system", "--from", &text(source)?])?;
    let seconds = timer.elapsed().as_secs_f64();
    say(&format!(
        "{} in {seconds:.1} s; {} sealed, {} sent home.",
        bytes(number(&created, "logical_bytes")?),
        bytes(number(&created, "sealed_bytes")?),
        bytes(number(&created, "sent_bytes")?),
    ));
    let skipped = skipped(&created, source);
    if !skipped.is_empty() {
        say(&format!(
            "{} entries could not be read and were skipped.",
            skipped.len()
        ));
    }
    let before = manifest::read(source, &skipped)?;

    step("Check it out on laptop");
    let here = laptop.check_out()?;
    let files = before
        .values()
        .filter(|entry| entry.facts.is_file())
        .count();
    say(&format!(
        "{} entries, {files} of them files, are there; fetched so far: {}.",
        before.len(),
        laptop.fetched()?
    ));

    step("Work on it with ordinary programs");
    for line in work(&before) {
        shell_line(stage, &here, &line)?;
    }
    say(&format!("fetched so far: {}.", laptop.fetched()?));

    step("Checkpoint, commit, release");
    let cut = laptop.imgctl(&["checkpoint", "system", "-m", "some work"])?;
    say(&format!(
        "checkpoint: the application was held up for {:.2} ms; {} were dirty.",
        number(&cut, "freeze_us")? as f64 / 1e3,
        bytes(number(&cut, "dirty_bytes")?)
    ));
    let timer = Instant::now();
    let committed = laptop.imgctl(&["commit", "system", "-m", "a first session"])?;
    say(&format!(
        "commit {} (number {}) in {:.1} s; {} sent home.",
        short(&committed, "commit")?,
        number(&committed, "seq")?,
        timer.elapsed().as_secs_f64(),
        bytes(number(&committed, "sent_bytes")?)
    ));
    let (expected, touched) = manifest::after(&before, &here)?;
    laptop.imgctl(&["release", "system"])?;
    say("released; the image can be checked out elsewhere.");

    step("A second device joins by invite and goes on");
    let invite = laptop.imgctl(&["device", "invite"])?;
    let tablet = Device::start(stage, "tablet")?;
    tablet.imgctl(&["join", &string(&invite, "invite")?, "--name", "tablet"])?;
    say("tablet joined.");
    let there = tablet.check_out()?;
    say(&format!("fetched so far: {}.", tablet.fetched()?));

    step("Compare every file on tablet, bit for bit");
    let timer = Instant::now();
    let found = manifest::read(&there, &BTreeSet::new())?;
    manifest::ensure_equal(&expected, &found)?;
    let total: u64 = found.values().map(|entry| entry.facts.size).sum();
    say(&format!(
        "{} entries with {} are equal in content, type, mode, owner and time ({touched} of them changed on \
         laptop); {:.1} s, fetched in all: {}.",
        found.len(),
        bytes(total),
        timer.elapsed().as_secs_f64(),
        tablet.fetched()?
    ));
    tablet.imgctl(&["release", "system"])?;

    let usage = stage.json(
        stage
            .program("imghome")
            .arg("usage")
            .arg(stage.path("home")),
    )?;
    step(&format!(
        "Done in {:.0} s. The home holds {} in {} objects, and no key to open them.",
        began.elapsed().as_secs_f64(),
        bytes(number(&usage, "object_bytes")?),
        number(&usage, "objects")?
    ));
    Ok(())
}

impl<'a> Device<'a> {
    fn start(stage: &'a Stage, name: &'static str) -> Result<Self> {
        let socket = stage.path(&format!("{name}.sock"));
        let mut daemon = stage.program("imgd");
        daemon
            .arg("--state")
            .arg(stage.path(&format!("{name}.state")));
        daemon.arg("--socket").arg(&socket);
        stage.start_at(name, daemon, &socket)?;
        Ok(Self {
            stage,
            name,
            socket,
        })
    }

    fn imgctl(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.stage.program("imgctl");
        command
            .arg("--socket")
            .arg(&self.socket)
            .arg("--no-start")
            .args(args);
        let log = || {
            format!(
                "the end of {}'s log:\n{}",
                self.name,
                self.stage.log(self.name)
            )
        };
        self.stage.json(&mut command).with_context(log)
    }

    fn check_out(&self) -> Result<PathBuf> {
        let folder = self.stage.path(self.name);
        let timer = Instant::now();
        self.imgctl(&["checkout", "system", &text(&folder)?])?;
        let millis = timer.elapsed().as_millis();
        say(&format!(
            "mounted at {} after {millis} ms.",
            folder.display()
        ));
        Ok(folder)
    }

    fn fetched(&self) -> Result<String> {
        let status = self.imgctl(&["status", "system"])?;
        Ok(format!(
            "{} in {} objects",
            bytes(number(&status, "fetched_bytes")?),
            number(&status, "fetched_objects")?
        ))
    }
}

/// Makes a home on a free port and serves it; returns the founding invite.
fn start_home(stage: &Stage) -> Result<String> {
    let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut init = stage.program("imghome");
    init.arg("init")
        .arg(stage.path("home"))
        .args(["--address", &address]);
    let invite = stage.json(&mut init)?;
    let mut serve = stage.program("imghome");
    serve
        .arg("serve")
        .arg(stage.path("home"))
        .args(["--listen", &address, "--json"]);
    stage.start("home", serve)?;
    string(&invite, "invite")
}

/// What a person might do in such a tree, on entries that it has.
fn work(before: &Manifest) -> Vec<String> {
    let files = |least: u64, most: u64| {
        let fits = move |size: u64| (least..=most).contains(&size);
        let files = before
            .iter()
            .filter(move |(_, entry)| entry.facts.is_file() && fits(entry.facts.size));
        files.map(|(path, _)| quoted(path))
    };
    let mut lines = vec![
        "find . -type f | wc -l".to_owned(),
        "mkdir session && date > session/started".to_owned(),
        "find . -type f | sort > session/list && gzip -k session/list && ls -l session".to_owned(),
    ];
    let mut small = files(1, 20_000);
    if let (Some(read), Some(copied), Some(moved), Some(removed)) =
        (small.next(), small.next(), small.next(), small.next())
    {
        lines.extend([
            format!("wc -c {read} && sha256sum {read}"),
            format!("cp -a {copied} session/copy && cmp {copied} session/copy"),
            format!("mv {moved} session/moved"),
            format!("rm {removed}"),
        ]);
    }
    if let Some(large) = files(1_000_000, u64::MAX).next() {
        lines.push(format!(
            "printf changed | dd of={large} bs=1 seek=500000 conv=notrunc status=none"
        ));
    }
    lines.extend([
        "truncate -s 64M session/sparse && printf end >> session/sparse && du -h session/sparse".to_owned(),
        "ln -s started session/link && ln session/started session/again && chmod 600 session/started"
            .to_owned(),
    ]);
    lines
}

fn shell_line(stage: &Stage, folder: &Path, line: &str) -> Result<()> {
    say(&format!("$ {line}"));
    let mut command = Command::new("sh");
    command.args(["-ec", line]).current_dir(folder);
    let output = stage.run(command.stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        say(&format!("  {line}"));
    }
    ensure!(
        output.status.success(),
        "failed ({}): {line}",
        output.status
    );
    Ok(())
}

/// Paths below the source that the import could not take.
fn skipped(created: &Value, source: &Path) -> BTreeSet<PathBuf> {
    let skipped = created.get("skipped").and_then(Value::as_array);
    let paths = skipped.into_iter().flatten();
    paths
        .filter_map(|entry| entry.get("path").and_then(Value::as_str))
        .map(|path| {
            Path::new(path)
                .strip_prefix(source)
                .unwrap_or(Path::new(path))
                .to_owned()
        })
        .collect()
}

fn step(title: &str) {
    say(&format!("\n== {title}"));
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} bytes"),
        10_000..10_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

fn number(answer: &Value, field: &str) -> Result<u64> {
    let number = answer.get(field).and_then(Value::as_u64);
    number.with_context(|| format!("no number {field} in {answer}"))
}

fn string(answer: &Value, field: &str) -> Result<String> {
    let string = answer.get(field).and_then(Value::as_str);
    Ok(string
        .with_context(|| format!("no text {field} in {answer}"))?
        .to_owned())
}

fn short(answer: &Value, field: &str) -> Result<String> {
    Ok(string(answer, field)?.chars().take(10).collect())
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}
