//! Making a home, and the founding invite for its first device.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use img_records::{FoundingInvite, invite::ADDRESS_LEN_MAX};
use img_types::Incarnation;

use crate::calls::founding_hash;
use crate::db::{self, Address, Columns as _, NewHome, OpenError};
use crate::folder::{Folder, FolderError};

/// The port of a home, UDP.
pub const DEFAULT_PORT: u16 = 4460;

/// Why there is no home or no invite.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// Founding happens once.
    #[error(
        "this home has been founded; further devices join with an invite of one that is on it: \
         imgctl device invite"
    )]
    Founded,
    /// The address is not one that devices can use.
    #[error("{0} is no address of a home; give HOST:PORT")]
    Address(String),
    /// The machine gives no randomness.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// Makes a home in a new or empty folder and returns the invite for its founder.
///
/// # Errors
/// The folder is not empty, cannot be written, or the address is none.
pub async fn init(
    path: &Path,
    database: Option<Address>,
    name: &str,
    address: &str,
) -> Result<FoundingInvite, InitError> {
    check_address(address)?;
    let folder = Folder::create(path)?;
    let secret: [u8; 16] = random()?;
    let home = NewHome {
        name,
        address,
        incarnation: Incarnation::from_bytes(random()?),
        founding_hash: founding_hash(&secret),
    };
    let database = database.unwrap_or_else(|| Address::file(&folder.database()));
    db::create(&database, &home).await?;
    invite_of(&folder, address.to_owned(), secret)
}

/// Makes a new founding invite; the one before ends. With an address, that one is recorded.
///
/// # Errors
/// The home has been founded.
pub async fn invite(
    path: &Path,
    database: Option<Address>,
    address: Option<&str>,
) -> Result<FoundingInvite, InitError> {
    let folder = Folder::open(path)?;
    let database = database.unwrap_or_else(|| Address::file(&folder.database()));
    let mut connection = db::connect(&database).await?;
    let founded = sqlx::query("SELECT COUNT(*) FROM roster")
        .fetch_one(&mut connection)
        .await
        .and_then(|row| row.number(0))
        .map_err(OpenError::from)?;
    if founded != 0 {
        return Err(InitError::Founded);
    }
    if let Some(address) = address {
        check_address(address)?;
    }
    let secret: [u8; 16] = random()?;
    let recorded: String = sqlx::query_scalar(
        "UPDATE home SET founding_hash = $1, address = COALESCE($2, address) RETURNING address",
    )
    .bind(&founding_hash(&secret)[..])
    .bind(address)
    .fetch_one(&mut connection)
    .await
    .map_err(OpenError::from)?;
    invite_of(&folder, recorded, secret)
}

/// The address under which this machine is probably reached: the one that it would send from.
pub fn default_address() -> String {
    let local = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // Connecting a datagram socket sends nothing; the address is one for documentation.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    let ip = local.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip());
    format!("{ip}:{DEFAULT_PORT}")
}

fn invite_of(
    folder: &Folder,
    address: String,
    secret: [u8; 16],
) -> Result<FoundingInvite, InitError> {
    let identity = img_net::TlsIdentity::from_seed(&folder.key()?.to_bytes());
    Ok(FoundingInvite {
        address,
        home_key_hash: img_net::key_hash(&identity.public_key()),
        secret,
    })
}

fn check_address(address: &str) -> Result<(), InitError> {
    let sound = address.len() <= ADDRESS_LEN_MAX
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            let host_sound = !host.is_empty() && !host.contains(char::is_whitespace);
            host_sound && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
    if sound {
        Ok(())
    } else {
        Err(InitError::Address(address.to_owned()))
    }
}

fn random<const N: usize>() -> Result<[u8; N], InitError> {
    crate::random().map_err(|error| InitError::Random(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_founding_invite_is_renewed_until_somebody_founds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home");
        let first = init(&path, None, "test", "home.example:4460")
            .await
            .unwrap();
        let again = init(&path, None, "test", "home.example:4460").await;
        assert!(matches!(
            again,
            Err(InitError::Folder(FolderError::NotEmpty(_)))
        ));
        let second = invite(&path, None, None).await.unwrap();
        assert_eq!(first.home_key_hash, second.home_key_hash);
        assert_eq!(second.address, "home.example:4460");
        assert_ne!(first.secret, second.secret);
        let third = invite(&path, None, Some("10.0.0.7:9")).await.unwrap();
        assert_eq!(third.address, "10.0.0.7:9");
    }

    #[tokio::test]
    async fn an_address_without_a_port_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home");
        for bad in ["home", "home:", ":4460", "home:0", "a b:1"] {
            let made = init(&path, None, "test", bad).await;
            assert!(matches!(made, Err(InitError::Address(_))), "{bad}");
        }
        assert!(!path.exists());
        assert!(check_address(&default_address()).is_ok());
    }
}
