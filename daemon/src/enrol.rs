//! How this device comes to belong to a home, and lets others in.
//!
//! ```text
//! join with a founding invite:  connect → make keys and genesis → show the recovery words → write the genesis
//!                               down → send it → pin
//! join with a member's invite:  connect → write the request down → send it → wait for the inviter's daemon →
//!                               read the whole roster → check it against the invite → pin
//! recover:                      connect, proved by the words → read the roster → show new words → write the entry
//!                               down → send it → pin
//! ```
//!
//! Each can be interrupted anywhere and goes on where it was. [`papers`] makes and checks the records;
//! `docs/formats.md` describes them.

mod inviting;
pub mod papers;
mod revoking;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use img_net::{ConnectError, Connection, LinkError};
use img_proto::{Answer, Call, Class, Refusal, Request};
use img_records::{AnyInvite, FoundingInvite, Invite, JoinAnswer, Roster, SigningSecret};
use img_seal::RecoverySecret;
use img_types::{DaemonNonce, DeviceName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::error::{About, ApiError, Kind, wrong_home};
use crate::events::{self, Phase, Reporter};
use crate::identity::Identity;
use crate::state::{HomePin, State};

pub use inviting::{answer_joins, invite};
pub use papers::{EnrolError, device_name};
pub use revoking::{Revocation, explain as explain_revocation, revoke, revokes};

/// Enrols this device; one at a time.
#[derive(Debug)]
pub struct Enrolment<'a> {
    /// Where it is written down.
    pub state: &'a State,
    /// The device's own keys.
    pub identity: &'a Identity,
    /// This start of the daemon.
    pub nonce: DaemonNonce,
    /// Says what it waits for.
    pub reporter: &'a Reporter,
    /// Takes lines that must reach the person before the enrolment goes on.
    pub lines: mpsc::Sender<Value>,
}

/// An enrolment that was interrupted.
#[derive(Serialize, Deserialize)]
enum Underway {
    Founding {
        home_key_hash: [u8; 32],
        genesis: Vec<u8>,
    },
    Joining {
        invite: String,
        request: Vec<u8>,
    },
    Recovering {
        home_key_hash: [u8; 32],
        entry: Vec<u8>,
    },
}

impl Enrolment<'_> {
    /// Joins a home, or founds it.
    ///
    /// # Errors
    /// What is wrong with the invite, or the home is away or refuses.
    pub async fn join(&self, invite: &str, name: &DeviceName) -> Result<Value, ApiError> {
        let invite: AnyInvite = invite.parse().map_err(|error| {
            ApiError::new(
                Kind::InviteInvalid,
                format!("That is no invite: {error}."),
                "Copy the whole line; `imgctl device invite` prints a new one.",
            )
        })?;
        if let Some(joined) = self.joined_before(&invite).await? {
            return Ok(joined);
        }
        self.refuse_if_enrolled().await?;
        match invite {
            AnyInvite::Founding(invite) => self.found(&invite, name).await,
            AnyInvite::Member(invite) => self.join_as_member(&invite, name).await,
        }
    }

    /// Comes back with the recovery words.
    ///
    /// # Errors
    /// The words are not this home's, or the home is away or refuses.
    pub async fn recover(
        &self,
        address: &str,
        home_key_hash: [u8; 32],
        words: &str,
        name: &DeviceName,
    ) -> Result<Value, ApiError> {
        let words = RecoverySecret::parse(words)
            .map_err(|error| ApiError::usage(format!("These are not recovery words: {error}.")))?;
        self.refuse_if_enrolled().await?;
        let connection = self.connect(address, home_key_hash).await?;
        let signer = SigningSecret::from_bytes(*words.signing_seed());
        let proof = Bytes::copy_from_slice(&signer.sign(&connection.exporter()));
        let entry = match self.underway().await? {
            Some(Underway::Recovering {
                home_key_hash: hash,
                entry,
            }) if hash == home_key_hash => entry,
            _ => {
                let call = Call::RecoverRoster {
                    proof: proof.clone(),
                };
                let entries = match call_once(&connection, call).await? {
                    Answer::Roster { entries, .. } => entries,
                    _ => return Err(nonsense()),
                };
                let entries: Vec<_> = entries.iter().map(|entry| entry.to_vec()).collect();
                let roster = papers::replay(&entries).map_err(|error| unverified(&error))?;
                let made = papers::recover(self.identity, &roster, &words, name, events::now())
                    .map_err(|error| unverified(&error))?;
                self.show_words(&made.recovery, address, home_key_hash)
                    .await?;
                let entry = made.entry.to_bytes();
                self.write_down(&Underway::Recovering {
                    home_key_hash,
                    entry: entry.clone(),
                })
                .await?;
                entry
            }
        };
        let call = Call::RecoverAppend {
            proof,
            entry: entry.into(),
        };
        self.deliver(&connection, call).await?;
        connection.close();
        let entries = self.read_roster(address, home_key_hash).await?;
        let roster = papers::replay(&entries).map_err(|error| unverified(&error))?;
        let pinned = self.pin(address, home_key_hash, &roster, &entries).await?;
        Ok(with(pinned, "recovered", true))
    }

    async fn found(&self, invite: &FoundingInvite, name: &DeviceName) -> Result<Value, ApiError> {
        let connection = self.connect(&invite.address, invite.home_key_hash).await?;
        let genesis = match self.underway().await? {
            Some(Underway::Founding {
                home_key_hash,
                genesis,
            }) if home_key_hash == invite.home_key_hash => genesis,
            _ => {
                self.refuse_second_founder(&connection).await?;
                let made = papers::found(self.identity, name, events::now())
                    .map_err(|error| unverified(&error))?;
                self.show_words(&made.recovery, &invite.address, invite.home_key_hash)
                    .await?;
                let genesis = made.genesis.to_bytes();
                self.write_down(&Underway::Founding {
                    home_key_hash: invite.home_key_hash,
                    genesis: genesis.clone(),
                })
                .await?;
                genesis
            }
        };
        let call = Call::Found {
            secret: invite.secret,
            genesis: genesis.clone().into(),
        };
        self.deliver(&connection, call).await.map_err(void_words)?;
        let entries = [genesis];
        let roster = papers::replay(&entries).map_err(|error| unverified(&error))?;
        let pinned = self
            .pin(&invite.address, invite.home_key_hash, &roster, &entries)
            .await?;
        Ok(with(pinned, "founded", true))
    }

    async fn join_as_member(&self, invite: &Invite, name: &DeviceName) -> Result<Value, ApiError> {
        let request = match self.underway().await? {
            Some(Underway::Joining {
                invite: line,
                request,
            }) if line == invite.to_string() => request,
            _ if invite.expires < events::now() => return Err(expired()),
            _ => {
                let request = papers::ask(self.identity, invite, name).encode();
                self.write_down(&Underway::Joining {
                    invite: invite.to_string(),
                    request: request.clone(),
                })
                .await?;
                request
            }
        };
        self.reporter.phase(Phase::Wait, None);
        self.reporter
            .waits_for(Some("the device that invited this one"));
        let answer = self.await_answer(invite, request).await?;
        self.reporter.waits_for(None);
        if answer.entry.is_empty() && answer.verify(&invite.secret).is_ok() {
            self.give_up().await?;
            return Err(name_taken(name));
        }
        let entries = self
            .read_roster(&invite.address, invite.home_key_hash)
            .await?;
        let roster = papers::accept(self.identity, invite, &answer, &entries)
            .map_err(|error| unverified(&error))?;
        let pinned = self
            .pin(&invite.address, invite.home_key_hash, &roster, &entries)
            .await?;
        Ok(with(pinned, "founded", false))
    }

    /// Asks until the inviter's daemon has answered; connections may come and go meanwhile.
    async fn await_answer(
        &self,
        invite: &Invite,
        request: Vec<u8>,
    ) -> Result<JoinAnswer, ApiError> {
        let mut connection = self.connect(&invite.address, invite.home_key_hash).await?;
        let mut call = Call::JoinRequest {
            invite: invite.id(),
            request: request.into(),
        };
        loop {
            let again = Request {
                id: None,
                call: call.clone(),
            };
            match connection.call(&again, Class::Control).await {
                Ok(reply) => match reply.result {
                    Ok(Answer::Join {
                        answer: Some(answer),
                    }) => {
                        connection.close();
                        return JoinAnswer::decode(&answer).map_err(|_| nonsense());
                    }
                    Ok(Answer::Join { answer: None }) => {
                        call = Call::JoinPoll {
                            invite: invite.id(),
                        };
                        tokio::time::sleep(POLL_PAUSE).await;
                    }
                    Ok(_) => return Err(nonsense()),
                    Err(Refusal::Busy) => tokio::time::sleep(POLL_PAUSE).await,
                    Err(refusal) => {
                        self.give_up().await?;
                        return Err(refused(&refusal));
                    }
                },
                Err(LinkError::Away) => {
                    tokio::time::sleep(POLL_PAUSE).await;
                    connection = self.connect(&invite.address, invite.home_key_hash).await?;
                }
                Err(error) => return Err(link_error(&error)),
            }
        }
    }

    /// Sends a record that was written down; a refusal ends the enrolment.
    async fn deliver(&self, connection: &Connection, call: Call) -> Result<(), ApiError> {
        let outcome = call_once(connection, call).await;
        if let Err(error) = &outcome
            && !matches!(error.kind, Kind::HomeAway)
        {
            self.give_up().await?;
        }
        outcome.map(|_| ())
    }

    /// Reads the whole roster, as a member.
    async fn read_roster(
        &self,
        address: &str,
        home_key_hash: [u8; 32],
    ) -> Result<Vec<Vec<u8>>, ApiError> {
        let connection = self.connect(address, home_key_hash).await?;
        let hello = Call::Hello {
            nonce: self.nonce,
            seen: None,
        };
        call_once(&connection, hello).await?;
        let mut roster: Vec<Vec<u8>> = Vec::new();
        loop {
            let from = roster.len() as u64;
            match call_once(&connection, Call::Roster { from }).await? {
                Answer::Roster { entries, more } => {
                    let ended = !more || entries.is_empty();
                    roster.extend(entries.iter().map(|entry| entry.to_vec()));
                    if ended {
                        connection.close();
                        return Ok(roster);
                    }
                }
                _ => return Err(nonsense()),
            }
        }
    }

    async fn pin(
        &self,
        address: &str,
        home_key_hash: [u8; 32],
        roster: &Roster,
        entries: &[Vec<u8>],
    ) -> Result<Value, ApiError> {
        let membership = self.membership(roster)?;
        let pin = HomePin {
            address: address.to_owned(),
            home_key_hash,
            home_key: None,
            home: roster.home(),
            seen: None,
        };
        let entries = entries.to_vec();
        self.state
            .with(move |db| db.enrolled(&pin, &entries))
            .await
            .map_err(ApiError::failed)?;
        Ok(membership)
    }

    /// This device as the roster has it.
    fn membership(&self, roster: &Roster) -> Result<Value, ApiError> {
        let ring = crate::identity::key_ring(self.identity.kem(), roster)
            .map_err(|_| unverified(&EnrolError::Key))?;
        let device = self.identity.device();
        let member = roster
            .member(&device)
            .ok_or_else(|| unverified(&EnrolError::OtherHome))?;
        Ok(json!({
            "device": device,
            "name": device_name(&ring, roster, &device),
            "role": papers::role(member.member.role),
            "home": roster.home(),
        }))
    }

    async fn show_words(
        &self,
        recovery: &RecoverySecret,
        address: &str,
        home_key_hash: [u8; 32],
    ) -> Result<(), ApiError> {
        let hash = data_encoding::HEXLOWER.encode(&home_key_hash);
        let line = json!({
            "recovery_words": recovery.words().as_str(),
            "recover": format!("imgctl recover {address} {hash}"),
        });
        let unheard = |_| ApiError::failed("nobody is there to write the recovery words down");
        self.lines.send(line).await.map_err(unheard)
    }

    async fn connect(
        &self,
        address: &str,
        home_key_hash: [u8; 32],
    ) -> Result<Connection, ApiError> {
        let tls = self.identity.tls();
        let connecting = img_net::connect(address, home_key_hash, &tls);
        tokio::time::timeout(CONNECT_PATIENCE, connecting)
            .await
            .unwrap_or(Err(ConnectError::Unreachable))
            .map_err(|error| connect_error(&error, address))
    }

    /// What a join has led to, if it was finished before: whoever was interrupted asks again.
    async fn joined_before(&self, invite: &AnyInvite) -> Result<Option<Value>, ApiError> {
        let pinned = self
            .state
            .with(|db| Ok((db.home()?, db.roster()?)))
            .await
            .map_err(ApiError::failed)?;
        let (Some(pin), entries) = pinned else {
            return Ok(None);
        };
        let home_key_hash = match invite {
            AnyInvite::Founding(invite) => invite.home_key_hash,
            AnyInvite::Member(invite) => invite.home_key_hash,
        };
        if pin.home_key_hash != home_key_hash {
            return Ok(None);
        }
        let roster = papers::replay(&entries).map_err(|error| unverified(&error))?;
        let joined = self.membership(&roster)?;
        Ok(Some(with(joined, "already", true)))
    }

    /// Sees to it that nobody writes down recovery words which the home then refuses.
    async fn refuse_second_founder(&self, connection: &Connection) -> Result<(), ApiError> {
        let hello = Call::Hello {
            nonce: self.nonce,
            seen: None,
        };
        let request = Request {
            id: None,
            call: hello,
        };
        let reply = connection.call(&request, Class::Control).await;
        match reply.map_err(|error| link_error(&error))?.result {
            // Only a home without a roster has no members to tell strangers from.
            Err(Refusal::NotFounded) => Ok(()),
            Err(Refusal::NotMember) => Err(refused(&Refusal::AlreadyFounded)),
            Err(refusal) => Err(refused(&refusal)),
            Ok(_) => Err(nonsense()),
        }
    }

    async fn refuse_if_enrolled(&self) -> Result<(), ApiError> {
        match self.state.with(|db| db.home()).await {
            Ok(None) => Ok(()),
            Ok(Some(pin)) => Err(ApiError::new(
                Kind::AlreadyJoined,
                format!(
                    "This device belongs to the home at {} already.",
                    pin.address
                ),
                "Another home needs another state folder: imgd --state DIR --socket PATH.",
            )),
            Err(error) => Err(ApiError::failed(error)),
        }
    }

    async fn underway(&self) -> Result<Option<Underway>, ApiError> {
        let record = self.state.with(|db| db.enrolment()).await;
        let record = record.map_err(ApiError::failed)?;
        Ok(record.and_then(|record| postcard::from_bytes(&record).ok()))
    }

    async fn write_down(&self, underway: &Underway) -> Result<(), ApiError> {
        let record = postcard::to_allocvec(underway).map_err(ApiError::failed)?;
        self.state
            .with(move |db| db.set_enrolment(&record))
            .await
            .map_err(ApiError::failed)
    }

    async fn give_up(&self) -> Result<(), ApiError> {
        self.state
            .with(|db| db.end_enrolment())
            .await
            .map_err(ApiError::failed)
    }
}

/// The words were shown before the home could refuse.
fn void_words(mut error: ApiError) -> ApiError {
    if error.kind != Kind::HomeAway {
        error
            .message
            .push_str(" The recovery words that were shown are void.");
    }
    error
}

async fn call_once(connection: &Connection, call: Call) -> Result<Answer, ApiError> {
    let request = Request { id: None, call };
    let reply = connection.call(&request, Class::Control).await;
    let reply = reply.map_err(|error| link_error(&error))?;
    reply.result.map_err(|refusal| refused(&refusal))
}

fn connect_error(error: &ConnectError, address: &str) -> ApiError {
    match error {
        ConnectError::WrongHome => wrong_home(),
        ConnectError::Version => ApiError::new(
            Kind::Failed,
            "The home speaks another version of the protocol.",
            "Bring this machine and the home to the same release.",
        ),
        ConnectError::Address(_) | ConnectError::Unreachable | ConnectError::Socket(_) => {
            ApiError::new(
                Kind::HomeAway,
                format!("The home at {address} cannot be reached: {error}. Nothing was changed."),
                "Check that imghome runs there and that its UDP port is open; then ask again.",
            )
        }
    }
}

fn link_error(error: &LinkError) -> ApiError {
    match error {
        LinkError::Away => ApiError::away("Ask again to go on."),
        LinkError::WrongHome => wrong_home(),
        LinkError::Refused(refusal) => refused(refusal),
        LinkError::Protocol(_) | LinkError::Corrupt(_) => nonsense(),
    }
}

fn refused(refusal: &Refusal) -> ApiError {
    let about = About {
        image: "the home",
        this: None,
        device_name: &|device| device.short(),
    };
    ApiError::refused(refusal, about)
}

fn unverified(error: &EnrolError) -> ApiError {
    ApiError::new(
        Kind::Corrupt,
        format!("The enrolment does not verify: {error}. This device has not joined."),
        "Ask for a new invite from somebody you trust.",
    )
}

fn nonsense() -> ApiError {
    ApiError::new(
        Kind::Corrupt,
        "The home's answer makes no sense. This device has not joined.",
        "Check that both sides run the same release.",
    )
}

fn name_taken(name: &DeviceName) -> ApiError {
    ApiError::new(
        Kind::NameTaken,
        format!("Another device of this home is called {name}. This device has not joined."),
        "Choose another name with --name; the invite stays good until it expires.",
    )
}

fn expired() -> ApiError {
    ApiError::new(
        Kind::InviteExpired,
        "The invite has expired.",
        "Ask for a new one: `imgctl device invite` on an enrolled device.",
    )
}

fn with(mut object: Value, field: &str, value: bool) -> Value {
    object[field] = json!(value);
    object
}

/// How long a person waits for a home that does not answer: its first packet and two repetitions.
const CONNECT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(4);
/// Pause between two questions whether a join has been answered, where the home does not wait itself.
const POLL_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);
