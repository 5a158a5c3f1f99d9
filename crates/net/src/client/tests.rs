use std::net::Ipv4Addr;

use futures_util::FutureExt;
use img_types::limits::STREAM_RECEIVE_WINDOW;

use super::*;
use crate::key_hash;
use crate::server::{Server, StreamError};

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn home() -> TlsIdentity {
    TlsIdentity::from_seed(&[1; 32])
}

fn device() -> TlsIdentity {
    TlsIdentity::from_seed(&[2; 32])
}

#[test]
fn an_identity_has_the_public_key_of_its_seed() {
    // RFC 8032, section 7.1, test 1.
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let seed = *seed.parse::<ObjectId>().unwrap().as_bytes();
    let public = *public.parse::<ObjectId>().unwrap().as_bytes();
    let identity = TlsIdentity::from_seed(&seed);
    assert_eq!(identity.public_key(), public);
    assert_eq!(format!("{identity:?}"), "TlsIdentity { .. }");
}

#[tokio::test]
async fn a_home_of_another_version_is_told_from_a_silent_one() {
    let mut tls = home().server_config().unwrap();
    tls.alpn_protocols = vec![b"imgctl/9".to_vec()];
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = Endpoint::server(config, LOCAL.into()).unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    let outcome = connect(&address, key_hash(&home().public_key()), &device()).await;
    assert_eq!(outcome.err(), Some(ConnectError::Version));
    serving.abort();
}

#[tokio::test]
async fn the_failure_that_says_most_is_told() {
    use ConnectError::{Unreachable, Version, WrongHome};
    let tried = |outcomes: Vec<Result<u8, ConnectError>>| {
        first_connected(outcomes.into_iter().map(std::future::ready))
    };
    assert_eq!(tried(vec![]).await, None);
    for (outcomes, told) in [
        (vec![Err(WrongHome), Err(Unreachable)], Err(WrongHome)),
        (vec![Err(Unreachable), Err(WrongHome)], Err(WrongHome)),
        (vec![Err(Version), Err(Unreachable)], Err(Version)),
        (vec![Err(WrongHome), Err(Version)], Err(WrongHome)),
        (vec![Err(WrongHome), Ok(1)], Ok(1)),
    ] {
        assert_eq!(tried(outcomes).await, Some(told));
    }
}

#[tokio::test]
async fn a_push_that_nobody_reads_is_given_up() {
    let server = Server::bind(LOCAL.into(), &home()).unwrap();
    let address = server.local_address().unwrap().to_string();
    let key_hash = key_hash(&home().public_key());
    let connecting = tokio::spawn(async move { connect(&address, key_hash, &device()).await });
    let _peer = server.accept().await.unwrap().establish().await.unwrap();
    let connection = connecting.await.unwrap().unwrap();
    let full = Bytes::from(vec![0; STREAM_RECEIVE_WINDOW as usize]);
    let objects = futures_util::stream::repeat(full);
    tokio::time::pause();
    let outcome = connection
        .push(UploadId::from_bytes([1; 32]), objects, |_| {})
        .await;
    assert_eq!(outcome, Err(LinkError::Away));
    assert!(connection.is_open(), "the home is there, it does not read");
}

#[tokio::test]
async fn a_frame_that_does_not_go_on_is_given_up() {
    let server = Server::bind(LOCAL.into(), &home()).unwrap();
    let address = server.local_address().unwrap().to_string();
    let key_hash = key_hash(&home().public_key());
    let connecting = tokio::spawn(async move { connect(&address, key_hash, &device()).await });
    let peer = server.accept().await.unwrap().establish().await.unwrap();
    let connection = connecting.await.unwrap().unwrap();
    let (mut send, _receive) = connection.connection.open_bi().await.unwrap();
    send.write_all(&1_000u32.to_le_bytes()).await.unwrap();
    send.write_all(b"only this").await.unwrap();
    let mut stream = peer.accept().await.unwrap();
    tokio::time::pause();
    let outcome = stream.read_request(REQUEST_LEN_MAX).await;
    assert_eq!(outcome, Err(StreamError::TooSlow));
}

#[tokio::test]
async fn a_peer_that_is_not_admitted_has_few_streams() {
    let server = Server::bind(LOCAL.into(), &home()).unwrap();
    let address = server.local_address().unwrap().to_string();
    let key_hash = key_hash(&home().public_key());
    let connecting = tokio::spawn(async move { connect(&address, key_hash, &device()).await });
    let peer = server.accept().await.unwrap().establish().await.unwrap();
    let connection = connecting.await.unwrap().unwrap().connection;
    let mut streams = Vec::new();
    for _ in 0..transport::STRANGER_STREAMS_MAX {
        streams.push(connection.open_bi().await.unwrap());
    }
    let mut one_more = std::pin::pin!(connection.open_bi());
    assert!((&mut one_more).now_or_never().is_none());
    peer.admit();
    one_more.await.unwrap();
    for _ in streams.len() + 1..img_types::limits::STREAMS_PER_CONNECTION_MAX as usize {
        streams.push(connection.open_bi().await.unwrap());
    }
}

#[tokio::test]
async fn while_many_handshakes_are_under_way_a_newcomer_proves_its_address() {
    let server = Server::bind(LOCAL.into(), &home()).unwrap();
    let address = server.local_address().unwrap().to_string();
    let key_hash = key_hash(&home().public_key());
    let under_way = server.occupy(img_types::limits::INCOMING_MAX / 2 + 1);
    let newcomer = address.clone();
    let connecting = tokio::spawn(async move { connect(&newcomer, key_hash, &device()).await });
    server.accept().await.unwrap().establish().await.unwrap();
    connecting.await.unwrap().unwrap();

    let all = server.occupy(img_types::limits::INCOMING_MAX / 2 - 1);
    let accepting = tokio::spawn(async move { server.accept().await.unwrap().establish().await });
    let refused = connect(&address, key_hash, &device()).await;
    assert_eq!(refused.err(), Some(ConnectError::Unreachable));
    drop((under_way, all));
    connect(&address, key_hash, &device()).await.unwrap();
    accepting.await.unwrap().unwrap();
}
