//! What a client writes down: every request before it is first sent, and every answer.
//!
//! One line is one `write` to a file opened with `O_APPEND`, so that `kill -9` tears at most the last one;
//! the machine itself does not crash here, so that nothing is synced. A life of a client has a file of its
//! own, `clients/NUMBER/LIFE.journal`. Times are nanoseconds of `CLOCK_MONOTONIC`, which all processes of
//! a machine share.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use data_encoding::BASE64_NOPAD;
use img_proto::{Reply, Request};
use img_types::Instance;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A request that may be sent from now on.
    Sent(Nanos, Request),
    /// The answer to the request before.
    Answered(Nanos, Reply),
    /// A Hello was answered: the daemon's instance.
    Hello(Nanos, Instance),
    /// A Hello was answered with: a newer daemon is known.
    Fenced(Nanos),
    /// Something that must not happen.
    Broken(Nanos, String),
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub type Nanos = u64;

/// The time.
pub fn now() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    // Both are never negative on this clock.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The file of one life, open for its lines.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
}

impl Journal {
    /// Begins a journal.
    ///
    /// # Errors
    /// The file exists or cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options().append(true).create_new(true).open(path);
        let file = Mutex::new(file.with_context(|| path.display().to_string())?);
        Ok(Self { file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, line: &Line) -> Result<()> {
        let text = match line {
            Line::Sent(at, request) => format!("S {at} {}\n", encode(request)?),
            Line::Answered(at, reply) => format!("A {at} {}\n", encode(reply)?),
            Line::Hello(at, instance) => format!("H {at} {}\n", encode(instance)?),
            Line::Fenced(at) => format!("F {at} -\n"),
            Line::Broken(at, why) => format!("X {at} {}\n", encode(why)?),
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // One call: whoever is killed leaves whole lines before the last.
        Ok(file.write_all(text.as_bytes())?)
    }
}

/// Reads a journal; a torn last line is none.
///
/// # Errors
/// The file or a line before the last cannot be read.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(parse);
    lines
        .collect::<Result<_>>()
        .with_context(|| path.display().to_string())
}

/// The folder of a client's journals.
pub fn folder(dir: &Path, number: u32) -> PathBuf {
    dir.join("clients").join(format!("{number:03}"))
}

/// The journals of a client's lives, oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn lives(dir: &Path, number: u32) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder(dir, number))?;
    let mut paths: Vec<_> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// The journal of one life.
pub fn path(dir: &Path, number: u32, life: u32) -> PathBuf {
    folder(dir, number).join(format!("{life:06}.journal"))
}

fn parse(line: &str) -> Result<Line> {
    let mut words = line.split(' ');
    let mut word = || words.next().context("a word is missing");
    let (kind, at, body) = (word()?, word()?.parse()?, word()?);
    Ok(match kind {
        "S" => Line::Sent(at, decode(body)?),
        "A" => Line::Answered(at, decode(body)?),
        "H" => Line::Hello(at, decode(body)?),
        "F" => Line::Fenced(at),
        "X" => Line::Broken(at, decode(body)?),
        other => bail!("unknown line {other}"),
    })
}

fn encode(value: &impl Serialize) -> Result<String> {
    Ok(BASE64_NOPAD.encode(&postcard::to_stdvec(value)?))
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T> {
    Ok(postcard::from_bytes(
        &BASE64_NOPAD.decode(text.as_bytes())?,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_proto::Call;
    use img_types::RequestId;

    #[test]
    fn a_torn_last_line_is_none_and_the_others_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000000.journal");
        let request = Request {
            id: Some(RequestId::from_bytes([3; 32])),
            call: Call::Images { after: None },
        };
        let reply = Reply {
            at: None,
            result: Err(img_proto::Refusal::Busy),
        };
        let lines = [
            Line::Hello(1, Instance(7)),
            Line::Sent(2, request),
            Line::Answered(3, reply),
            Line::Broken(4, "two words".to_owned()),
            Line::Fenced(5),
        ];
        let journal = Journal::create(&path).unwrap();
        for line in &lines {
            journal.write(line).unwrap();
        }
        assert_eq!(read(&path).unwrap(), lines);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(read(&path).unwrap(), lines[..4]);
    }
}
