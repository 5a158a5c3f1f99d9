//! What the owner of a device sets: `config.toml` in the state folder.
//!
//! Read once, at the start. `docs/operations.md` shows the file with all its keys. A key that is not known is refused
//! and not passed over: who writes `intervall` would believe in it.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use img_types::{parse_duration, parse_size};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Checkpoints that nobody asks for.
    pub checkpoints: Checkpoints,
    /// The connection to the home.
    pub link: Link,
}

/// When checkpoints are taken without anybody asking, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoints {
    /// How far they are apart.
    pub interval: Interval,
    /// The shortest interval that is computed.
    #[serde(deserialize_with = "duration")]
    pub min: Duration,
    /// The longest interval that is computed.
    #[serde(deserialize_with = "duration")]
    pub max: Duration,
    /// Mean time between failures of this device: crashes, losses, flat batteries.
    #[serde(deserialize_with = "duration")]
    pub mtbf: Duration,
    /// Which of them become commits.
    pub commit: CommitPolicy,
}

/// How far automatic checkpoints are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// As far as what they cost suggests.
    Auto,
    /// So far.
    Fixed(Duration),
    /// There are none.
    Off,
}

/// Which automatic checkpoints become commits; the others are staged at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitPolicy {
    /// Each.
    Every,
    /// The newest, when the last commit is so long ago.
    After(Duration),
    /// None: a person commits.
    Hand,
}

/// What the connection to the home may be used for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// Bytes per second that are uploaded at most; nothing for as fast as it goes.
    #[serde(deserialize_with = "rate")]
    pub up: Option<u64>,
    /// Whether uploads that nobody waits for wait while the connection is metered.
    pub pause_on_metered: bool,
    /// Who knows whether it is metered.
    pub metered: Metered,
}

/// Whether the connection is paid for by what goes through it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metered {
    /// As NetworkManager says; without one it is not.
    #[default]
    Ask,
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read: {error}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Something in it is not understood.
    #[error(
        "the configuration {path} is not understood{place}: {why}. Correct that, or take it out; then start again"
    )]
    Content {
        /// Which file.
        path: String,
        /// Which line, as far as that is known.
        place: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self {
            interval: Interval::Auto,
            min: Duration::from_secs(60),
            max: Duration::from_secs(30 * 60),
            mtbf: Duration::from_secs(7 * 86_400),
            commit: CommitPolicy::Every,
        }
    }
}

impl Config {
    /// Reads the configuration of a state folder; what the folder does not say is as usual.
    ///
    /// # Errors
    /// The file cannot be read, or is not understood.
    pub fn read(state_dir: &Path) -> Result<Self, ConfigError> {
        let file = state_dir.join(FILE_NAME);
        let path = file.display().to_string();
        match std::fs::read_to_string(&file) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(ConfigError::Read { path, error }),
        }
    }

    fn parse(text: &str, path: String) -> Result<Self, ConfigError> {
        let parsed = toml::from_str::<Self>(text).map_err(|error| {
            let at = error.span().map(|span| span.start.min(text.len()));
            let place = at.and_then(|at| place(text, at)).unwrap_or_default();
            (place, error.message().replace('\n', ", "))
        });
        let checked = parsed.and_then(|config| match config.checkpoints.check() {
            Some(why) => Err((" in [checkpoints]".to_owned(), why)),
            None => Ok(config),
        });
        checked.map_err(|(place, why)| ConfigError::Content { path, place, why })
    }
}

impl Checkpoints {
    /// What about the values together makes no sense.
    fn check(&self) -> Option<String> {
        if self.min > self.max {
            return Some("min is longer than max".to_owned());
        }
        let mut all = vec![self.min, self.mtbf];
        if let Interval::Fixed(interval) = self.interval {
            all.push(interval);
        }
        let short = all.into_iter().any(|time| time < INTERVAL_MIN);
        short.then(|| format!("no interval is shorter than {}", say(INTERVAL_MIN)))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(interval) => write!(f, "{}", say(*interval)),
            Self::Off => f.write_str("off"),
        }
    }
}

impl fmt::Display for CommitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("every"),
            Self::After(time) => write!(f, "{}", say(*time)),
            Self::Hand => f.write_str("hand"),
        }
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            time => {
                let wrong = |_| D::Error::custom("it is \"auto\", \"off\", or a time such as 5m");
                parse_duration(time).map(Self::Fixed).map_err(wrong)
            }
        }
    }
}

impl<'de> Deserialize<'de> for CommitPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "every" => Ok(Self::Every),
            "hand" => Ok(Self::Hand),
            time => {
                let wrong =
                    |_| D::Error::custom("it is \"every\", \"hand\", or a time such as 15m");
                parse_duration(time).map(Self::After).map_err(wrong)
            }
        }
    }
}

/// Parses an upload limit such as `2M`: bytes per second.
///
/// # Errors
/// A sentence that says what one is.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = parse_size(text)?;
    if rate < RATE_MIN {
        return Err("an upload limit is 64K (bytes per second) or more".to_owned());
    }
    Ok(rate)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(D::Error::custom)
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_rate(&text).map(Some).map_err(D::Error::custom)
}

/// Which line a byte stands in, with what the line says.
fn place(text: &str, at: usize) -> Option<String> {
    let number = text.get(..at)?.matches('\n').count();
    let line = text.lines().nth(number)?.trim();
    let shown: String = line.chars().take(LINE_SHOWN_MAX).collect();
    Some(format!(" at line {}, \"{shown}\"", number + 1))
}

fn say(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(time)
}

/// The file's name in the state folder.
const FILE_NAME: &str = "config.toml";
/// A checkpoint costs a few syncs of the disk: more often than this they would be all it does.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// One block in about a second: at less the home would take this device for one that has stopped.
const RATE_MIN: u64 = 64 << 10;
/// Characters of a line that an error shows.
const LINE_SHOWN_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, "/x/config.toml".into()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_is_as_usual() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::read(dir.path()).unwrap(), Config::default());
        assert_eq!(parse(""), Ok(Config::default()));
        let config = parse("[checkpoints]\ninterval = \"5m\"\n").unwrap();
        let five = Duration::from_secs(300);
        assert_eq!(config.checkpoints.interval, Interval::Fixed(five));
        assert_eq!(config.checkpoints.commit, CommitPolicy::Every);
    }

    #[test]
    fn the_file_of_the_documentation_is_what_is_usual() {
        let document = include_str!("../../docs/operations.md");
        let example = document.split("```toml\n").nth(1).unwrap();
        let config = parse(example.split("```").next().unwrap()).unwrap();
        let usual = Config::default();
        assert_eq!(config.checkpoints, usual.checkpoints);
        // Without a limit there is nothing to show.
        assert_eq!(config.link.up, Some(2 << 20));
        assert_eq!(config.link.metered, usual.link.metered);
        assert_eq!(config.link.pause_on_metered, usual.link.pause_on_metered);
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_file() {
        for (text, says) in [
            (
                "[checkpoints]\nintervall = \"5m\"\n",
                "at line 2, \"intervall",
            ),
            ("[checkpoint]\n", "`checkpoint`"),
            (
                "[checkpoints]\ninterval = \"soon\"",
                "at line 2, \"interval",
            ),
            ("[checkpoints]\ncommit = \"never\"", "\"every\", \"hand\""),
            ("[checkpoints]\nmin = \"1h\"", "min is longer than max"),
            ("[checkpoints]\ninterval = \"10ms\"", "shorter than 1s"),
            ("[link]\nup = \"1K\"", "64K"),
            ("[link]\nup = 5", "up = 5"),
            ("[link]\nmetered = \"maybe\"", "metered = "),
            ("[link", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            let named = error.contains("/x/config.toml") && error.contains(says);
            assert!(named, "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn settings_are_said_as_they_are_written() {
        for text in ["auto", "off", "5m"] {
            let config = parse(&format!("[checkpoints]\ninterval = \"{text}\"")).unwrap();
            assert_eq!(config.checkpoints.interval.to_string(), text);
        }
        for text in ["every", "hand", "15m"] {
            let config = parse(&format!("[checkpoints]\ncommit = \"{text}\"")).unwrap();
            assert_eq!(config.checkpoints.commit.to_string(), text);
        }
    }
}
