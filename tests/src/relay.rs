//! What lies between a client and a server, and fails: a relay of TCP that can be cut.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]
#![expect(clippy::disallowed_methods, reason = "its tasks end with it")]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A relay on loopback to one server.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    open: watch::Sender<bool>,
    listening: JoinHandle<()>,
}

impl Relay {
    /// Begins to relay to a server.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = watch::Sender::new(true);
        let listening = tokio::spawn(listen(listener, server, open.clone()));
        Self { address, open, listening }
    }

    /// Where clients find it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection; new ones end at once.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Relays again.
    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, server: SocketAddr, open: watch::Sender<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        if *open.borrow() {
            tokio::spawn(carry(client, server, open.subscribe()));
        }
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mut open: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server) => {}
        () = pump(from_server, to_client) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer).await {
        let Some(read) = buffer.get(..n).filter(|read| !read.is_empty()) else { return };
        if to.write_all(read).await.is_err() {
            return;
        }
    }
}
