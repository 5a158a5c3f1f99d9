//! Ed25519 keys as TLS identities: raw public keys (RFC 7250) both ways, no certificates.
//!
//! A device accepts exactly the home whose key hash it has pinned. A home accepts every key at this level
//! and says in its answers who is on the roster: in TLS 1.3 a refused client would not learn it from the
//! handshake anyway.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version,
};

/// An Ed25519 public key's `SubjectPublicKeyInfo` without the key (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// An Ed25519 private key in PKCS #8 without the seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const RESET_CONTEXT: &str = "imgctl 2026-11-21 quic reset v1";

/// The key with which one side of a connection proves who it is.
#[derive(Clone)]
pub struct TlsIdentity {
    key: Arc<CertifiedKey>,
    public: [u8; 32],
    reset: [u8; 32],
}

impl TlsIdentity {
    /// Takes the 32-byte seed of an Ed25519 key (RFC 8032).
    ///
    /// # Panics
    /// Never: every seed is a key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pkcs8 = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], seed].concat());
        let key = ring::sign::any_eddsa_type(&pkcs8).expect("every 32-byte seed is an Ed25519 key");
        let spki = key.public_key().expect("Ed25519 keys have a public half");
        let public = public_key(&spki).expect("the public half of an Ed25519 key has this form");
        let entry = CertificateDer::from(spki.to_vec());
        Self {
            key: Arc::new(CertifiedKey::new(vec![entry], key)),
            public,
            reset: blake3::derive_key(RESET_CONTEXT, seed),
        }
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// A secret that stays the same over restarts, so that a restarted home can tell its devices at once
    /// that their connections are gone.
    pub(crate) fn reset_secret(&self) -> &[u8; 32] {
        &self.reset
    }

    pub(crate) fn server_config(&self) -> Result<rustls::ServerConfig, Error> {
        let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&self.key));
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyDevice(algorithms())))
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![img_proto::ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    pub(crate) fn client_config(
        &self,
        home: Arc<PinnedHome>,
    ) -> Result<rustls::ClientConfig, Error> {
        let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&self.key));
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(home)
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![img_proto::ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// The hash under which a home's key is pinned: BLAKE3 of the 32 bytes of its public key.
pub fn key_hash(public: &[u8; 32]) -> [u8; 32] {
    *blake3::hash(public).as_bytes()
}

/// The public key of the other end.
pub(crate) fn peer_key(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let identity = connection.peer_identity()?;
    let entries = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    public_key(entries.first()?)
}

/// Accepts the home with one key, and remembers whether another answered.
#[derive(Debug)]
pub(crate) struct PinnedHome {
    key_hash: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
    other_answered: AtomicBool,
}

impl PinnedHome {
    pub(crate) fn new(key_hash: [u8; 32]) -> Self {
        Self {
            key_hash,
            algorithms: algorithms(),
            other_answered: AtomicBool::new(false),
        }
    }

    pub(crate) fn other_answered(&self) -> bool {
        self.other_answered.load(Ordering::Relaxed)
    }
}

impl ServerCertVerifier for PinnedHome {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = public_key(end_entity).ok_or(CertificateError::BadEncoding)?;
        if key_hash(&key) == self.key_hash {
            Ok(ServerCertVerified::assertion())
        } else {
            self.other_answered.store(true, Ordering::Relaxed);
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts every device that proves that it has some Ed25519 key.
#[derive(Debug)]
struct AnyDevice(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyDevice {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match public_key(end_entity) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn verify_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
}

fn public_key(spki: &[u8]) -> Option<[u8; 32]> {
    spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

fn tls12() -> Error {
    Error::General("TLS 1.2 is not offered".into())
}
