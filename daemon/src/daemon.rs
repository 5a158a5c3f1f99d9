//! The daemon as a whole: its state, and once the device has joined, its home with images and checkouts.

mod attend;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use img_records::Invite;
use img_store::Cache;
use img_types::limits::CACHE_LEN_DEFAULT;
use img_types::{DaemonNonce, DeviceName};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use crate::checkouts::Checkouts;
use crate::config::Config;
use crate::enrol::{self, Enrolment};
use crate::error::{ApiError, Kind};
use crate::events::{Events, Reporter};
use crate::home::Home;
use crate::identity::Identity;
use crate::images::Images;
use crate::state::{HomePin, State};
use crate::uplink::Uplink;

/// One daemon.
#[derive(Debug)]
pub struct Daemon {
    state: State,
    config: Config,
    socket: PathBuf,
    identity: Arc<Identity>,
    nonce: DaemonNonce,
    events: Events,
    member: RwLock<Option<Arc<Member>>>,
    joining: tokio::sync::Mutex<()>,
}

/// What a device has that belongs to a home.
#[derive(Debug)]
pub struct Member {
    /// The home.
    pub home: Arc<Home>,
    /// Its images.
    pub images: Images,
    /// What is checked out here.
    pub checkouts: Arc<Checkouts>,
    state: State,
    invited: Notify,
}

impl Daemon {
    /// Starts over a state folder; goes on with every checkout that is open there.
    ///
    /// # Errors
    /// The folder is another daemon's, or damaged.
    pub async fn start(state: State, config: Config, socket: PathBuf) -> anyhow::Result<Arc<Self>> {
        let identity = Arc::new(Identity::load_or_create(&state.identity_dir())?);
        let mut nonce = [0; DaemonNonce::LEN];
        getrandom::fill(&mut nonce)?;
        let daemon = Arc::new(Self {
            config,
            socket,
            identity,
            nonce: DaemonNonce::from_bytes(nonce),
            events: Events::new(),
            member: RwLock::default(),
            joining: tokio::sync::Mutex::default(),
            state,
        });
        let pin = daemon.state.with(|db| db.home()).await?;
        if let Some(pin) = pin {
            daemon.become_member(pin).await?;
        }
        Ok(daemon)
    }

    /// Syncs and unmounts every checkout; leases stay.
    pub async fn stop(&self) {
        if let Ok(member) = self.member() {
            member.checkouts.stop().await;
        }
    }

    /// The state folder.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The control API's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where events are told.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// What this device has as a member of its home.
    ///
    /// # Errors
    /// It has not joined.
    pub fn member(&self) -> Result<Arc<Member>, ApiError> {
        let member = self.member.read().unwrap_or_else(PoisonError::into_inner);
        member.clone().ok_or_else(|| {
            ApiError::new(
                Kind::NotJoined,
                "This device belongs to no home yet.",
                "Join with an invite: imgctl join INVITE",
            )
        })
    }

    /// Joins a home, or founds it.
    ///
    /// # Errors
    /// As [`Enrolment::join`].
    pub async fn join(
        &self,
        invite: &str,
        name: &DeviceName,
        reporter: &Reporter,
        lines: mpsc::Sender<Value>,
    ) -> Result<Value, ApiError> {
        let _one_at_a_time = self.one_enrolment()?;
        let joined = self.enrolment(reporter, lines).join(invite, name).await?;
        self.enrolled().await?;
        Ok(joined)
    }

    /// Comes back to a home with the recovery words.
    ///
    /// # Errors
    /// As [`Enrolment::recover`].
    pub async fn recover(
        &self,
        address: &str,
        home_key_hash: [u8; 32],
        words: &str,
        name: &DeviceName,
        reporter: &Reporter,
        lines: mpsc::Sender<Value>,
    ) -> Result<Value, ApiError> {
        let _one_at_a_time = self.one_enrolment()?;
        let enrolment = self.enrolment(reporter, lines);
        let recovered = enrolment
            .recover(address, home_key_hash, words, name)
            .await?;
        self.enrolled().await?;
        Ok(recovered)
    }

    fn one_enrolment(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
        self.joining
            .try_lock()
            .map_err(|_| ApiError::usage("This device is joining a home already."))
    }

    fn enrolment<'a>(
        &'a self,
        reporter: &'a Reporter,
        lines: mpsc::Sender<Value>,
    ) -> Enrolment<'a> {
        Enrolment {
            state: &self.state,
            identity: &self.identity,
            nonce: self.nonce,
            reporter,
            lines,
        }
    }

    async fn enrolled(&self) -> Result<(), ApiError> {
        let pin = self.state.with(|db| db.home()).await;
        match pin.map_err(ApiError::failed)? {
            Some(pin) => self.become_member(pin).await.map_err(ApiError::failed),
            None => Err(ApiError::failed("the home was not pinned")),
        }
    }

    async fn become_member(&self, pin: HomePin) -> anyhow::Result<()> {
        let objects_dir = self.state.objects_dir();
        let cache =
            tokio::task::spawn_blocking(move || Cache::open(&objects_dir, CACHE_LEN_DEFAULT));
        let home = Home::open(
            &self.state,
            Arc::clone(&self.identity),
            self.nonce,
            pin,
            cache.await??,
            Uplink::new(self.config.link.clone()),
            self.events.clone(),
        )
        .await?;
        let images = Images::new(Arc::clone(&home), self.state.clone());
        let checkouts = Checkouts::recover(
            Arc::clone(&home),
            images.clone(),
            self.state.clone(),
            self.config.checkpoints.clone(),
            self.events.clone(),
            &self.socket,
        )
        .await?;
        let member = Arc::new(Member {
            home,
            images,
            checkouts,
            state: self.state.clone(),
            invited: Notify::new(),
        });
        attend::start(&member, &self.events);
        *self.member.write().unwrap_or_else(PoisonError::into_inner) = Some(member);
        Ok(())
    }
}

impl Member {
    /// Issues an invite, and sees to it that who asks to join under it is answered.
    ///
    /// # Errors
    /// This device is no admin, or the home is away or refuses.
    pub async fn invite(&self) -> Result<Invite, ApiError> {
        let invite = enrol::invite(&self.home, &self.state).await;
        let invite = invite.map_err(|error| self.home.explain(&error, "the home"))?;
        self.invited.notify_one();
        Ok(invite)
    }
}
