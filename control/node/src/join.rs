//! How a node joins a cluster that it knows by an address, a token and its authority's hash: what it
//! gets is a kubeconfig of its own.
//!
//! ```text
//! look at the certificates that the server shows ─▶ the authority has that hash? ─▶ trust it alone
//!   ─▶ ask for a token of kube-system/fairlead-node, as the bearer of the join token ─▶ write it down
//! ```
//!
//! Nothing is sent to a server before its authority is known.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The account of all nodes, which the companion makes.
const ACCOUNT: (&str, &str) = ("kube-system", "fairlead-node");
/// How long a node's own token is good: a year, as upstream's certificates of kubelets are.
const GOOD_FOR: i64 = 365 * 24 * 3600;
/// How long the server may take.
const WITHIN: Duration = Duration::from_secs(30);

/// What a node is told of a cluster that it is to join.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// Where the API server is: `HOST:PORT`.
    pub server: String,
    /// The join token: `abcdef.0123456789abcdef`.
    pub token: String,
    /// `sha256:` and the hash of the authority's public key, in hexadecimal digits.
    pub ca_hash: String,
}

/// Why a node has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is no host and port.
    #[error("--join={0}: write HOST:PORT")]
    Server(String),
    /// It is no hash.
    #[error("--ca-hash={0}: write sha256: and 64 hexadecimal digits")]
    Hash(String),
    /// The server does not answer, or does not speak TLS.
    #[error("look at the certificates of {server}: {source}")]
    Look {
        /// The server.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else answers, or the hash is another cluster's.
    #[error(
        "{server} shows no authority of hash {wanted}: it is another cluster, or not its server"
    )]
    Stranger {
        /// The server.
        server: String,
        /// The hash.
        wanted: String,
    },
    /// The server refused the token.
    #[error("ask {server} for a token of this node's own: {source}")]
    Ask {
        /// The server.
        server: String,
        /// What it answered.
        source: Box<kube::Error>,
    },
    /// It answered, and gave none.
    #[error("{0} gave no token")]
    Nothing(String),
    /// The kubeconfig is not understood.
    #[error("read the kubeconfig of {server}: {source}")]
    Config {
        /// The server.
        server: String,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The kubeconfig cannot be kept.
    #[error("write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Joins a cluster, unless this node has done so already: `kubeconfig` is there then.
///
/// # Errors
/// The server is not the one, or does not take the token.
pub async fn join(invitation: &Invitation, kubeconfig: &Path) -> Result<(), JoinError> {
    if kubeconfig.exists() {
        tracing::info!(kubeconfig = %kubeconfig.display(), "this node has joined already");
        return Ok(());
    }
    let server = &invitation.server;
    let wanted = parse_hash(&invitation.ca_hash)?;
    let shown = tokio::time::timeout(WITHIN, look(server)).await;
    let late =
        || JoinError::Look { server: server.clone(), source: io::ErrorKind::TimedOut.into() };
    let shown = shown.map_err(|_elapsed| late())??;
    let authority = shown.into_iter().find(|one| hash(one) == Some(wanted));
    let authority = authority.ok_or_else(|| JoinError::Stranger {
        server: server.clone(),
        wanted: invitation.ca_hash.clone(),
    })?;
    let own = ask(server, &text(server, &authority, &invitation.token)).await?;
    write(kubeconfig, &text(server, &authority, &own))
        .map_err(|source| JoinError::Write { path: kubeconfig.to_owned(), source })?;
    tracing::info!(server, kubeconfig = %kubeconfig.display(), "joined");
    Ok(())
}

fn parse_hash(text: &str) -> Result<[u8; 32], JoinError> {
    let wrong = || JoinError::Hash(text.to_owned());
    let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64);
    let digits = digits.filter(|digits| digits.is_ascii()).ok_or_else(wrong)?;
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = str::from_utf8(pair).map_err(|_not_text| wrong())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_no_digits| wrong())?;
    }
    Ok(hash)
}

/// The hash of an authority's public key, as `kubeadm` has it.
fn hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone().into_owned()).ok()?;
    let key = &roots.roots.first()?.subject_public_key_info;
    // What is there is the content; what is hashed begins with what it is and how long.
    let mut whole = vec![0x30];
    match u8::try_from(key.len()).ok() {
        Some(short) if short < 128 => whole.push(short),
        Some(len) => whole.extend([0x81, len]),
        None => {
            let [high, low] = u16::try_from(key.len()).ok()?.to_be_bytes();
            whole.extend([0x82, high, low]);
        }
    }
    whole.extend_from_slice(key);
    Some(Sha256::digest(&whole).into())
}

/// The certificates that a server shows above its own; no session comes of it.
async fn look(server: &str) -> Result<Vec<CertificateDer<'static>>, JoinError> {
    let error = |source| JoinError::Look { server: server.to_owned(), source };
    let (host, _) = server.rsplit_once(':').ok_or_else(|| JoinError::Server(server.to_owned()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name =
        ServerName::try_from(host).map_err(|_no_name| JoinError::Server(server.to_owned()))?;
    let onlooker = Arc::new(Onlooker::default());
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|wrong| error(io::Error::other(wrong)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&onlooker) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let stream = TcpStream::connect(server).await.map_err(error)?;
    let refused = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let seen = onlooker.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (seen, refused) {
        (Some(seen), _) => Ok(seen),
        (None, Err(source)) => Err(error(source)),
        (None, Ok(_)) => Err(error(io::Error::other("it shows no certificates"))),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Notes what a server shows, and trusts nobody.
#[derive(Debug, Default)]
struct Onlooker {
    seen: Mutex<Option<Vec<CertificateDer<'static>>>>,
}

impl Onlooker {
    fn refuse<T>() -> Result<T, rustls::Error> {
        Err(rustls::Error::General("only looked at".to_owned()))
    }
}

impl ServerCertVerifier for Onlooker {
    fn verify_server_cert(
        &self,
        _own: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let above = above.iter().map(|one| one.clone().into_owned()).collect();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(above);
        Self::refuse()
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _own: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::refuse()
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _own: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::refuse()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Asks for a token of the nodes' account, with the kubeconfig of who was invited.
async fn ask(server: &str, invited: &str) -> Result<String, JoinError> {
    let wrong = |source| JoinError::Config { server: server.to_owned(), source: Box::new(source) };
    let refused = |source| JoinError::Ask { server: server.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::from_yaml(invited).map_err(wrong)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options);
    let client = Client::try_from(config.await.map_err(wrong)?).map_err(refused)?;
    let (namespace, name) = ACCOUNT;
    let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
    let asked = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(GOOD_FOR), ..Default::default() }),
        ..Default::default()
    };
    let answer = accounts.create_token_request(name, &PostParams::default(), &asked).await;
    let status = answer.map_err(refused)?.status;
    status.and_then(|status| status.token).ok_or_else(|| JoinError::Nothing(server.to_owned()))
}

/// A kubeconfig that trusts one authority.
fn text(server: &str, authority: &CertificateDer<'_>, token: &str) -> String {
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for (n, letter) in STANDARD.encode(authority).chars().enumerate() {
        if n > 0 && n % 64 == 0 {
            pem.push('\n');
        }
        pem.push(letter);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    let authority = STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: fairlead\n  cluster:\n    \
         server: https://{server}\n    certificate-authority-data: {authority}\n\
         users:\n- name: node\n  user:\n    token: {token}\ncontexts:\n- name: fairlead\n  \
         context:\n    cluster: fairlead\n    user: node\ncurrent-context: fairlead\n"
    )
}

/// A file that only its owner reads, there whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let partial = path.with_extension("partial");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An authority that `openssl req -x509` has made …
    const AUTHORITY: &str = "\
     MIIBdTCCARugAwIBAgIUbGNYJ6izsa4CiNB3PETXzsDu9uQwCgYIKoZIzj0EAwIwDzENMAsGA1UEAwwEdGVz\
     dDAgFw0yNjExMjIwMzI4MzJaGA8yMTI2MTAyOTAzMjgzMlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49\
     AgEGCCqGSM49AwEHA0IABN/XmqMy1dv4MCDsTjnDOL6kC2TUpzxFydipImjPkJH9PrLZimbg9ZXB+bqxOKie\
     5dFPGdy9en6I5wDinGBVSFGjUzBRMB0GA1UdDgQWBBQiU5s5XyMQ2ach3FxDpeaD9ZhL3DAfBgNVHSMEGDAW\
     gBQiU5s5XyMQ2ach3FxDpeaD9ZhL3DAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQD80L1l\
     n8abvaYSz5cQio/vb/UK4M2zA7JVZk60tYV6OAIgRscIc6uP7tBQoVfKYJthx0bkVabQVOpV7s/d1xgDYJ4=\
     ";
    /// … and what `openssl x509 -pubkey | openssl pkey -pubin -outform der | sha256sum` says of it.
    const HASH: &str = "sha256:65cbd5a9523dac28785e9108528c564d5386346a8ba30d26cff98362f160eb03";

    fn authority() -> CertificateDer<'static> {
        STANDARD.decode(AUTHORITY).unwrap().into()
    }

    #[test]
    fn an_authority_s_hash_is_its_public_key_s() {
        assert_eq!(hash(&authority()), Some(parse_hash(HASH).unwrap()));
        assert_eq!(hash(&CertificateDer::from(vec![0x30, 0])), None);
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let short = HASH.trim_end_matches('3');
        let odd = HASH.replace('6', "g");
        for bad in ["", "sha256:", short, &odd, &HASH.replace("sha256", "md5")] {
            assert!(matches!(parse_hash(bad), Err(JoinError::Hash(_))), "{bad}");
        }
    }

    #[test]
    fn a_kubeconfig_names_server_authority_and_token() {
        let text = text("172.18.0.1:6443", &authority(), "abcdef.0123456789abcdef");
        let read = Kubeconfig::from_yaml(&text).unwrap();
        let cluster = read.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://172.18.0.1:6443"));
        let pem = STANDARD.decode(cluster.certificate_authority_data.as_ref().unwrap()).unwrap();
        let pem = String::from_utf8(pem).unwrap();
        let body: String = pem.lines().filter(|line| !line.starts_with("--")).collect();
        assert_eq!(STANDARD.decode(body).unwrap(), authority().as_ref());
        assert!(pem.lines().all(|line| line.len() <= 64), "{pem}");
    }
}
