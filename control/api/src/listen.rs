//! The running server: a listener, its connections, and an end to both.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::allocate::Ranges;
use crate::auth::{Authenticator, Keys, bootstrap, write_private};
use crate::server::{Api, refuse};
use crate::status::Status;
use crate::store::{OpenStoreError, Retention, Store};
use crate::{kubeconfig, seed, tls};

/// What a server is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept.
    pub data: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Plain HTTP, or HTTPS with tokens.
    pub security: Security,
    /// The address that the Service `default/kubernetes` leads to.
    pub advertise: IpAddr,
    /// From what Services get their addresses.
    pub ranges: Ranges,
    /// How much history is kept.
    pub retention: Retention,
    /// Connections at once; what comes beyond waits.
    pub max_connections: usize,
    /// Where to write a kubeconfig of the administrator.
    pub kubeconfig: Option<PathBuf>,
    /// Where to write by which command a node joins, with a token made for it; over HTTPS only.
    pub join: Option<PathBuf>,
}

/// Whether clients must say who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Plain HTTP; whoever reaches the port is an administrator. For loopback.
    Http,
    /// HTTPS by a generated CA, bearer tokens, RBAC.
    Https,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Plain HTTP is for this machine only.
    #[error("refuse to serve plain HTTP on {0}, which is not loopback: add --secure")]
    PlainBeyondLoopback(SocketAddr),
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
    /// A first object cannot be written.
    #[error("write the objects that every cluster has: {0}")]
    Seed(String),
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The secrets in the data directory cannot be read or made.
    #[error("read or make the keys in {path}")]
    Keys {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates cannot be made.
    #[error("make the certificates: {0}")]
    Certificates(String),
    /// A join token cannot be made.
    #[error("make a join token: {0}")]
    Token(String),
    /// The command by which a node joins cannot be written.
    #[error("write the command by which a node joins to {path}")]
    Join {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kubeconfig cannot be written.
    #[error("write the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A server that listens.
pub struct Server {
    api: Arc<Api>,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    address: SocketAddr,
    advertise: IpAddr,
    kubeconfig: String,
    connections: Arc<Semaphore>,
}

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the store, makes what every cluster has, and listens.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        if config.security == Security::Http && !config.listen.ip().is_loopback() {
            return Err(StartError::PlainBeyondLoopback(config.listen));
        }
        let store = Store::open(&config.data, config.retention)?;
        let keys_error = |source| StartError::Keys { path: config.data.clone(), source };
        let keys = Keys::open(&config.data).map_err(keys_error)?;
        let listen_error = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        seed::seed(&store, &config.ranges, SocketAddr::new(config.advertise, address.port()))
            .await
            .map_err(|status| StartError::Seed(status.message))?;
        let identity = match config.security {
            Security::Http => None,
            Security::Https => Some(
                tls::open(&config.data, address.ip(), config.advertise, &config.ranges)
                    .map_err(StartError::Certificates)?,
            ),
        };
        if let (Some(path), Some(identity)) = (&config.join, &identity) {
            let reached = SocketAddr::new(config.advertise, address.port());
            invite(&store, reached, &identity.hash, path).await?;
        }
        let (acceptor, authority) =
            identity.map(|identity| (identity.acceptor, identity.authority)).unzip();
        let kubeconfig = kubeconfig::text(address, authority.as_deref(), keys.admin_token());
        if let Some(path) = &config.kubeconfig {
            let error = |source| StartError::Kubeconfig { path: path.clone(), source };
            write_private(path, kubeconfig.as_bytes()).map_err(error)?;
        }
        let auth = Authenticator::new(keys, config.security == Security::Https);
        let api = Api {
            store,
            ranges: Arc::new(config.ranges),
            auth,
            stop: CancellationToken::new(),
            tunnels: TaskTracker::new(),
        };
        let connections = Arc::new(Semaphore::new(config.max_connections));
        Ok(Self {
            api: Arc::new(api),
            listener,
            acceptor,
            address,
            advertise: config.advertise,
            kubeconfig,
            connections,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's kubeconfig, as text.
    #[must_use]
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Serves until told to stop; then ends watches, finishes requests and returns.
    pub async fn serve(self, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let advertised = SocketAddr::new(self.advertise, self.address.port());
        tasks.spawn(seed::keep(Arc::clone(&self.api), advertised));
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                permit = Arc::clone(&self.connections).acquire_owned() => permit,
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: those in use will come back.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (api, acceptor, stop) =
                (Arc::clone(&self.api), self.acceptor.clone(), stop.clone());
            tasks.spawn(async move {
                connection(api, acceptor, stream, stop).await;
                drop(permit);
            });
        }
        self.api.stop.cancel();
        tasks.close();
        self.api.tunnels.close();
        let all = async { tokio::join!(tasks.wait(), self.api.tunnels.wait()) };
        if tokio::time::timeout(HEAD_TIMEOUT, all).await.is_err() {
            tracing::info!("some connections did not end in time");
        }
    }
}

/// Makes a join token, and writes down the command that takes it.
async fn invite(
    store: &Store,
    reached: SocketAddr,
    hash: &str,
    path: &Path,
) -> Result<(), StartError> {
    let token = bootstrap::make(store).await.map_err(StartError::Token)?;
    let command =
        format!("fairlead node --run-pods --join {reached} --token {token} --ca-hash {hash}\n");
    write_private(path, command.as_bytes())
        .map_err(|source| StartError::Join { path: path.to_owned(), source })
}

async fn connection(
    api: Arc<Api>,
    acceptor: Option<TlsAcceptor>,
    stream: TcpStream,
    stop: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    match acceptor {
        None => serve(api, stream, stop).await,
        Some(acceptor) => match tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => serve(api, stream, stop).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS session"),
            Err(_) => tracing::debug!("a client did not finish its TLS handshake in time"),
        },
    }
}

async fn serve(
    api: Arc<Api>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    stop: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let api = Arc::clone(&api);
        async move {
            let request = request.map(Body::new);
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, api.answer(request)).await;
            let late = || refuse(&Status::new(504, "Timeout", "the request took too long"));
            Ok::<_, std::convert::Infallible>(answer.unwrap_or_else(|_elapsed| late()))
        }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended early");
    }
}

/// How long a request may take until its answer begins (a watch's stream may last longer).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
