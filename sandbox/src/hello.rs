//! What a pod of the demo and the tests serves: its own name, over HTTP, TCP and UDP on one port.
//!
//! A line that is an HTTP request gets an HTTP answer, any other line gets the name in a line, and
//! so does a datagram. `curl`, `nc` and a browser all understand one of these. `GET /source` gets the
//! address that the request comes from.

mod http;

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

/// The port that everybody expects.
pub const PORT: u16 = 8080;

/// Connections at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 4096;
const BACKLOG: u32 = 4096;
/// The longest line; a longer one is answered as if it ended here.
const MAX_LINE: u64 = 8 * 1024;
/// How long a connection may stay silent. An emulated machine may stand still for a minute.
const IDLE: Duration = Duration::from_secs(300);
/// How long open connections may go on once the server is asked to end.
const DRAIN: Duration = Duration::from_secs(5);

/// A server that is bound, so that clients can connect already.
#[derive(Debug)]
pub struct Hello {
    name: Arc<str>,
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Hello {
    /// Every address of both families, on [`PORT`].
    #[must_use]
    pub fn default_address() -> SocketAddr {
        (Ipv6Addr::UNSPECIFIED, PORT).into()
    }

    /// Binds `listen` for TCP and UDP; `[::]` takes IPv4 as well.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn bind(name: &str, listen: SocketAddr) -> io::Result<Self> {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let tcp = socket.listen(BACKLOG)?;
        // With port 0, UDP follows the port that TCP got.
        let udp = UdpSocket::bind((listen.ip(), tcp.local_addr()?.port())).await?;
        Ok(Self { name: name.into(), tcp, udp })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Answers until `stop` resolves; then accepts no more, and lets open connections finish.
    ///
    /// # Errors
    /// When a listening socket fails for good.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let Self { name, tcp, udp } = self;
        let mut connections = JoinSet::new();
        tokio::select! {
            outcome = accept(&tcp, &name, &mut connections) => outcome?,
            outcome = answer_datagrams(&udp, &name) => outcome?,
            () = stop => {}
        }
        drop(tcp);
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(DRAIN, drained).await.is_err() {
            tracing::info!("closing connections that are still open");
        }
        Ok(())
    }
}

async fn accept(
    tcp: &TcpListener,
    name: &Arc<str>,
    connections: &mut JoinSet<()>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        while connections.try_join_next().is_some() {}
        match tcp.accept().await {
            Ok((stream, _)) => {
                let name = Arc::clone(name);
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &name).await {
                        tracing::debug!(%error, "a connection failed");
                    }
                    drop(place);
                });
            }
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// accept(2) also reports errors of the connection it would have returned, and full tables.
fn is_passing(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(nix::libc::EBADF | nix::libc::EINVAL))
}

async fn answer_datagrams(udp: &UdpSocket, name: &str) -> io::Result<()> {
    let mut question = [0; 2048];
    let answer = format!("{name}\n");
    loop {
        // An error here is an ICMP answer to an earlier datagram, and no reason to end.
        let Ok((_, client)) = udp.recv_from(&mut question).await else { continue };
        if let Err(error) = udp.send_to(answer.as_bytes(), client).await {
            tracing::debug!(%error, %client, "answering a datagram failed");
        }
    }
}

/// Answers line by line, or request by request, until the client has had enough.
async fn converse(stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let source = stream.peer_addr()?.ip().to_canonical().to_string();
    let mut stream = BufReader::new(stream);
    loop {
        let Ok(line) = timeout(IDLE, read_line(&mut stream)).await else { return Ok(()) };
        let Some(line) = line? else { return Ok(()) };
        match http::Request::parse(&line) {
            None => stream.write_all(format!("{name}\n").as_bytes()).await?,
            Some(request) => {
                let Ok(read) = timeout(IDLE, http::read_rest(&mut stream, request)).await else {
                    return Ok(());
                };
                let request = read?;
                let answer = if request.asks_source() { &source } else { name };
                stream.write_all(request.answer(&format!("{answer}\n")).as_bytes()).await?;
                if request.is_last() {
                    return stream.shutdown().await;
                }
            }
        }
    }
}

/// One line without its end, cut off at [`MAX_LINE`]; nothing when the client has closed.
async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let n_read = stream.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    Ok((n_read > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned()))
}
