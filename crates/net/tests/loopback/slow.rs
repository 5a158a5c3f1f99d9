//! A slow link: forwards datagrams between one device and one home at a limited rate, with a short queue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Datagrams that wait for the link; what comes beyond is lost, as in a router.
const QUEUE: usize = 64;

/// Returns the address at which the home is reached at `bytes_per_second` each way.
pub(crate) async fn slow_link(home: SocketAddr, bytes_per_second: u32) -> SocketAddr {
    let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    far.connect(home).await.unwrap();
    let address = near.local_addr().unwrap();
    let (device_sender, device) = tokio::sync::watch::channel(None);

    let (up, up_queue) = mpsc::channel(QUEUE);
    let (down, down_queue) = mpsc::channel(QUEUE);
    let (from_near, to_far) = (Arc::clone(&near), Arc::clone(&far));
    tokio::spawn(async move {
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = from_near.recv_from(&mut datagram).await {
            device_sender.send_replace(Some(from));
            let _ = up.try_send(datagram[..len].to_vec());
        }
    });
    tokio::spawn(forward(
        up_queue,
        bytes_per_second,
        async move |datagram: Vec<u8>| {
            let _ = to_far.send(&datagram).await;
        },
    ));
    tokio::spawn(async move {
        let mut datagram = [0; 2048];
        while let Ok(len) = far.recv(&mut datagram).await {
            let _ = down.try_send(datagram[..len].to_vec());
        }
    });
    tokio::spawn(forward(
        down_queue,
        bytes_per_second,
        async move |datagram: Vec<u8>| {
            let to = *device.borrow();
            if let Some(to) = to {
                let _ = near.send_to(&datagram, to).await;
            }
        },
    ));
    address
}

async fn forward(
    mut queue: mpsc::Receiver<Vec<u8>>,
    bytes_per_second: u32,
    send: impl AsyncFn(Vec<u8>),
) {
    let mut free_at = Instant::now();
    while let Some(datagram) = queue.recv().await {
        let len = u32::try_from(datagram.len()).unwrap();
        free_at = free_at.max(Instant::now()) + Duration::from_secs(1) * len / bytes_per_second;
        sleep_until(free_at).await;
        send(datagram).await;
    }
}
