//! What a person or a script is told when a request fails.
//!
//! Owns the stable words, exit codes and HTTP statuses of `docs/control-api.md`, and turns refusals of
//! the home into sentences. It does not log: whoever handles an error does.

use img_proto::{LeaseRow, Refusal};
use img_types::DeviceId;
use serde_json::{Map, Value, json};

use crate::events;

/// A failed request: a kind that scripts rely on, a sentence, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Decides the stable word, the exit code and the status.
    pub kind: Kind,
    /// What happened and what it means, as a sentence.
    pub message: String,
    /// What to type next; may be empty.
    pub hint: String,
    /// Further fields of the JSON object.
    pub more: Map<String, Value>,
}

/// The kinds of failure, by what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something went wrong that no other kind names.
    Failed,
    /// Programs keep files of the checkout open.
    Busy,
    /// The request makes no sense.
    Usage,
    /// The device belongs to no home yet.
    NotJoined,
    /// The device belongs to a home already.
    AlreadyJoined,
    /// Another image has the name.
    NameTaken,
    /// The folder holds something.
    NotEmpty,
    /// The invite is no invite or another home's.
    InviteInvalid,
    /// The invite is used up or too old.
    InviteExpired,
    /// A read-only checkout holds changes.
    Unsaved,
    /// The image is checked out on this device.
    CheckedOut,
    /// There is no such image, commit, checkout or device.
    NotFound,
    /// Another checkout holds the lease.
    Leased,
    /// The lease lapsed, but its holder has newer work at the home.
    StagedWork,
    /// This checkout's token has been superseded.
    Orphan,
    /// The home cannot be reached.
    HomeAway,
    /// Stored data does not verify.
    Corrupt,
    /// The home is behind or unlike what this device saw of it.
    WentBack,
    /// Another machine answers at the home's address.
    WrongHome,
    /// The device lacks the right.
    NotAllowed,
    /// The device has been taken off the roster.
    Revoked,
    /// A newer daemon runs with this device's keys.
    Fenced,
    /// No room, or over a limit.
    NoRoom,
}

impl Kind {
    /// The stable word, the exit code and the HTTP status.
    pub fn codes(self) -> (&'static str, u8, u16) {
        match self {
            Self::Failed => ("failed", 1, 500),
            Self::Busy => ("busy", 1, 500),
            Self::Usage => ("usage", 2, 400),
            Self::NotJoined => ("not_joined", 2, 400),
            Self::AlreadyJoined => ("already_joined", 2, 400),
            Self::NameTaken => ("name_taken", 2, 400),
            Self::NotEmpty => ("not_empty", 2, 400),
            Self::InviteInvalid => ("invite_invalid", 2, 400),
            Self::InviteExpired => ("invite_expired", 2, 400),
            Self::Unsaved => ("unsaved", 2, 400),
            Self::CheckedOut => ("checked_out", 2, 400),
            Self::NotFound => ("not_found", 3, 404),
            Self::Leased => ("leased", 4, 409),
            Self::StagedWork => ("staged_work", 4, 409),
            Self::Orphan => ("orphan", 5, 409),
            Self::HomeAway => ("home_away", 6, 503),
            Self::Corrupt => ("corrupt", 7, 502),
            Self::WentBack => ("went_back", 7, 502),
            Self::WrongHome => ("wrong_home", 7, 502),
            Self::NotAllowed => ("not_allowed", 8, 403),
            Self::Revoked => ("revoked", 8, 403),
            Self::Fenced => ("fenced", 8, 403),
            Self::NoRoom => ("no_room", 9, 507),
        }
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        self.codes().2
    }
}

/// What a refusal is about, so that its sentence can name it.
#[derive(Clone, Copy)]
pub struct About<'a> {
    /// The image's name, or a word for what was asked.
    pub image: &'a str,
    /// This device, where it is a member.
    pub this: Option<DeviceId>,
    /// Names a device for people.
    pub device_name: &'a dyn Fn(&DeviceId) -> String,
}

impl ApiError {
    /// An error of a kind, with its sentence and its way out.
    pub fn new(kind: Kind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: hint.into(),
            more: Map::new(),
        }
    }

    /// A failure inside the daemon.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(
            Kind::Failed,
            error.to_string(),
            "The daemon's log says more: `imgd.log` in its state folder if imgctl started it. `imgctl doctor` checks the machine.",
        )
    }

    /// A request that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message, "")
    }

    /// Something that does not exist.
    pub fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message, hint)
    }

    /// The home cannot be reached.
    pub fn away(what_still_works: &str) -> Self {
        Self::new(
            Kind::HomeAway,
            format!("The home cannot be reached. {what_still_works}"),
            "Check the network, or ask whoever runs the home; `imgctl doctor` tries it again.",
        )
    }

    /// Adds a field to the JSON object.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.more.insert(field.to_owned(), value.into());
        self
    }

    /// The JSON object of `docs/control-api.md`.
    pub fn to_json(&self) -> Value {
        let (word, exit_code, _) = self.kind.codes();
        let mut object = self.more.clone();
        object.insert("error".into(), json!(word));
        object.insert("message".into(), json!(self.message));
        object.insert("hint".into(), json!(self.hint));
        object.insert("exit_code".into(), json!(exit_code));
        Value::Object(object)
    }

    /// Renders a refusal of the home.
    pub fn refused(refusal: &Refusal, about: About<'_>) -> Self {
        let image = about.image;
        match refusal {
            Refusal::Leased(lease) => leased(lease, about),
            Refusal::StagedWork { lease, staged } => {
                let holder = (about.device_name)(&lease.device);
                Self::new(
                    Kind::StagedWork,
                    format!("The lease of {image} has lapsed, but {holder} has newer work at the home that is not committed yet."),
                    format!("Wait until {holder} is back, or go on without that work: add --take-over (it stays at the home and can be branched)."),
                )
                .with("holder", holder)
                .with("staged", staged.to_string())
            }
            Refusal::UnknownImage => Self::not_found(
                format!("There is no image {image}."),
                "`imgctl ls` lists the images.",
            ),
            Refusal::UnknownCommit => Self::not_found(
                format!("{image} has no such commit."),
                format!("`imgctl log {image}` lists them."),
            ),
            Refusal::NameTaken => Self::new(
                Kind::NameTaken,
                format!("Another image is called {image}."),
                "Choose another name; `imgctl ls` lists those in use.",
            ),
            Refusal::TokenStale { holder, .. } => {
                let who = holder.as_ref().map_or_else(
                    || "somebody".to_owned(),
                    |device| (about.device_name)(device),
                );
                Self::new(
                    Kind::Orphan,
                    format!(
                        "{who} has taken over {image}: this checkout is orphaned. Its work is kept here."
                    ),
                    format!(
                        "Save it as a new image with `imgctl commit {image} --branch NEW`, or drop it with `imgctl release {image} --discard`."
                    ),
                )
            }
            Refusal::HeadMoved { .. } => Self::new(
                Kind::Orphan,
                format!(
                    "{image} has a newer commit than the one this checkout started from. Its work is kept here."
                ),
                format!(
                    "Save it as a new image with `imgctl commit {image} --branch NEW`, or drop it with `imgctl release {image} --discard`."
                ),
            ),
            Refusal::NotMember | Refusal::HelloFirst => Self::new(
                Kind::NotAllowed,
                "This device is not on the home's roster (any more).",
                "Ask an admin for an invite. What is here can still be exported.",
            ),
            Refusal::NotAdmin => Self::new(
                Kind::NotAllowed,
                "Only an admin's device may do this.",
                "`imgctl device list` shows who is an admin.",
            ),
            Refusal::InstanceFenced => Self::new(
                Kind::Fenced,
                "A newer daemon runs with this device's keys, so this one may change nothing any more.",
                "If this machine is a copy of another one, enrol it as a device of its own: start imgd with a new state folder and join.",
            ),
            Refusal::WentBack { .. } => went_back("it lacks what this device saw there"),
            Refusal::NotFounded => Self::new(
                Kind::InviteInvalid,
                "The home has not been founded yet.",
                "Use the founding invite that `imghome init` printed.",
            ),
            Refusal::AlreadyFounded => Self::new(
                Kind::InviteInvalid,
                "The home has been founded already, by another device.",
                "Ask an admin for an invite: `imgctl device invite` on an enrolled device.",
            ),
            Refusal::WrongFounding => Self::new(
                Kind::InviteInvalid,
                "This founding invite is not (or no longer) the home's.",
                "`imghome invite DIR` prints the current one.",
            ),
            Refusal::InviteUnknown => Self::new(
                Kind::InviteExpired,
                "The invite has expired, has been used, or was turned down.",
                "Ask for a new one: `imgctl device invite` on an enrolled device.",
            ),
            Refusal::NoRoom(what) => Self::new(
                Kind::NoRoom,
                format!("The home has no room: {what}."),
                "Nothing is lost; the work goes on when there is room at the home.",
            ),
            Refusal::OverLimit(what) => Self::new(
                Kind::NoRoom,
                format!("That is over a limit of the home: {what}."),
                "",
            ),
            Refusal::Busy => Self::new(
                Kind::HomeAway,
                "The home is too busy to answer.",
                "Try again in a moment.",
            ),
            Refusal::Incomplete { .. } | Refusal::BadObject | Refusal::BadRecord(_) => Self::new(
                Kind::Corrupt,
                format!("The home did not accept what was sent: {refusal}."),
                "`imgctl doctor` checks this device; nothing local is lost.",
            ),
            Refusal::Changed
            | Refusal::NobodyHolds
            | Refusal::Malformed(_)
            | Refusal::RosterMoved { .. }
            | Refusal::RequestReused
            | Refusal::DescriptorMoved
            | Refusal::SessionClosed
            | Refusal::LogMoved { .. }
            | Refusal::Internal(_) => Self::new(
                Kind::Failed,
                format!("The home refused: {refusal}."),
                "Try again; if it stays, the home's log says more.",
            ),
        }
    }
}

/// The home is behind or unlike what this device has seen of it; `what` says in which way.
pub fn went_back(what: &str) -> ApiError {
    ApiError::new(
        Kind::WentBack,
        format!(
            "The home went back in time: {what}. Nothing is sent to it. What is here stays, and what is checked out goes on working."
        ),
        "If it was restored from a backup: `imgctl home forward` gives back what this device has, `imgctl home accept-restore` goes on without. If not, ask whoever runs the home.",
    )
}

/// Another machine answers at the home's address.
pub fn wrong_home() -> ApiError {
    ApiError::new(
        Kind::WrongHome,
        "Another machine answers at the home's address: its key is not the pinned one. Nothing was sent to it.",
        "Ask whoever runs the home whether it has moved; a new home needs a new invite.",
    )
}

fn leased(lease: &LeaseRow, about: About<'_>) -> ApiError {
    let image = about.image;
    let holder = (about.device_name)(&lease.device);
    let until = events::after(lease.remaining_ms);
    if about.this == Some(lease.device) {
        // It cannot be stolen from oneself.
        return ApiError::new(
            Kind::Leased,
            format!("{image} is leased by another checkout of this device until {}.", events::time_in_words(until)),
            format!("`imgctl status` lists it. Close it with `imgctl release {image}` and ask again, or save this state as a new image: `imgctl commit DIR --branch NEW`."),
        )
        .with("holder", holder)
        .with("until", events::time(until));
    }
    let message = if lease.remaining_ms == 0 {
        // Its deadline has passed, but the home was down and holds it for a while.
        format!(
            "{image} is leased by {holder}. Its time is over, but the home was started anew a short while ago and gives {holder} time to come back."
        )
    } else {
        let until = events::time_in_words(until);
        format!("{image} is leased by {holder} until {until}.")
    };
    ApiError::new(
        Kind::Leased,
        message,
        format!("Close it there (`imgctl release {image}` on {holder}), or take it over with `imgctl steal {image}`. `imgctl checkout {image} --read-only` works meanwhile."),
    )
    .with("holder", holder)
    .with("until", events::time(until))
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_types::{CheckoutId, Epoch, LeaseMode};

    fn refused(refusal: &Refusal) -> ApiError {
        ApiError::refused(
            refusal,
            About {
                image: "vm",
                this: Some(DeviceId::from_bytes([9; 32])),
                device_name: &|_| "laptop".into(),
            },
        )
    }

    fn lease() -> LeaseRow {
        LeaseRow {
            device: DeviceId::from_bytes([1; 32]),
            checkout: CheckoutId::from_bytes([2; 32]),
            epoch: Epoch(3),
            mode: LeaseMode::Online,
            remaining_ms: 60_000,
            lapsed: false,
        }
    }

    #[test]
    fn every_refusal_of_a_rule_has_its_exit_code() {
        let staged = Refusal::StagedWork {
            lease: lease(),
            staged: img_types::CommitId::from_bytes([4; 32]),
        };
        let stale = Refusal::TokenStale {
            epoch: Epoch(4),
            holder: None,
            mode: None,
        };
        for (refusal, exit_code) in [
            (Refusal::Internal("x".into()), 1),
            (Refusal::NameTaken, 2),
            (Refusal::InviteUnknown, 2),
            (Refusal::AlreadyFounded, 2),
            (Refusal::UnknownImage, 3),
            (Refusal::UnknownCommit, 3),
            (Refusal::Leased(lease()), 4),
            (staged, 4),
            (stale, 5),
            (Refusal::HeadMoved { head: None }, 5),
            (Refusal::Busy, 6),
            (Refusal::WentBack { at_seen: None }, 7),
            (Refusal::NotMember, 8),
            (Refusal::NotAdmin, 8),
            (Refusal::InstanceFenced, 8),
            (Refusal::NoRoom("disk".into()), 9),
            (Refusal::OverLimit("quota".into()), 9),
        ] {
            assert_eq!(refused(&refusal).kind.codes().1, exit_code, "{refusal:?}");
        }
    }

    #[test]
    fn a_lease_error_names_holder_time_and_way_out() {
        let error = refused(&Refusal::Leased(lease()));
        let json = error.to_json();
        assert_eq!(json["error"], "leased");
        assert_eq!(json["exit_code"], 4);
        assert_eq!(json["holder"], "laptop");
        assert!(json["until"].as_str().unwrap().ends_with('Z'));
        assert!(error.message.contains("vm is leased by laptop until "));
        assert!(error.message.ends_with(" UTC."));
        assert!(error.hint.contains("imgctl release vm"));
    }

    #[test]
    fn nobody_is_told_to_steal_from_oneself() {
        let own = LeaseRow {
            device: DeviceId::from_bytes([9; 32]),
            ..lease()
        };
        let error = refused(&Refusal::Leased(own));
        assert_eq!(error.kind, Kind::Leased);
        assert!(error.message.contains("another checkout of this device"));
        assert!(!error.hint.contains("steal") && error.hint.contains("imgctl release vm"));
    }

    #[test]
    fn a_lease_that_only_the_homes_restart_holds_has_no_time() {
        let over = LeaseRow {
            remaining_ms: 0,
            ..lease()
        };
        let error = refused(&Refusal::Leased(over));
        assert!(error.message.contains("started anew"), "{error}");
    }

    #[test]
    fn words_are_unique() {
        let kinds = [
            Kind::Failed,
            Kind::Busy,
            Kind::Usage,
            Kind::NotJoined,
            Kind::AlreadyJoined,
            Kind::NameTaken,
            Kind::NotEmpty,
            Kind::InviteInvalid,
            Kind::InviteExpired,
            Kind::Unsaved,
            Kind::CheckedOut,
            Kind::NotFound,
            Kind::Leased,
            Kind::StagedWork,
            Kind::Orphan,
            Kind::HomeAway,
            Kind::Corrupt,
            Kind::WentBack,
            Kind::WrongHome,
            Kind::NotAllowed,
            Kind::Revoked,
            Kind::Fenced,
            Kind::NoRoom,
        ];
        let words: std::collections::BTreeSet<_> =
            kinds.iter().map(|kind| kind.codes().0).collect();
        assert_eq!(words.len(), kinds.len());
    }
}
