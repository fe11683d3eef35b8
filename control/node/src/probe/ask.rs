//! Asking once: over HTTP, TCP or gRPC, or by a command.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use nix::errno::Errno;
use tokio::net::TcpStream;

use super::Target;
use crate::runtime::{ContainerId, Runtime};

/// As much of an answer as is looked at or told.
const MAX_ANSWER: usize = 10 * 1024;

/// Asks once, for so long at most; what is not well is said in upstream's words.
pub(crate) async fn once(target: &Target, probe: &Probe, timeout: Duration) -> Result<(), String> {
    let asked = async {
        let container = &target.container;
        if let Some(exec) = &probe.exec {
            return command(target.runtime.as_ref(), &target.id, exec).await;
        }
        let host = target.address.ok_or("the pod has no address")?;
        if let Some(get) = &probe.http_get {
            return http_get(host, container, get).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            return connect(host, container, tcp).await;
        }
        if let Some(grpc) = &probe.grpc {
            return health(host, grpc).await;
        }
        Err("missing probe handler".to_owned())
    };
    let late = |_elapsed| Err(format!("timed out after {}s", timeout.as_secs()));
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(late)
}

/// The number of a port that is named or numbered.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let named = |name: &str| {
        let mut ports = container.ports.iter().flatten();
        ports.find(|one| one.name.as_deref() == Some(name)).map(|one| one.container_port)
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => named(text).or_else(|| text.parse().ok()),
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port > 0);
    number.ok_or_else(|| format!("invalid port {port:?}"))
}

async fn open(host: &str, port: u16) -> Result<TcpStream, String> {
    let shown =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let connected = TcpStream::connect((host, port)).await;
    connected.map_err(|error| format!("dial tcp {shown}: connect: {}", words(&error)))
}

/// An error in upstream's words: the system's own, in lower case and without its number.
fn words(error: &io::Error) -> String {
    let named = |errno| Errno::from_raw(errno).desc().to_lowercase();
    error.raw_os_error().map_or_else(|| error.to_string(), named)
}

async fn connect(host: IpAddr, own: &Container, tcp: &TCPSocketAction) -> Result<(), String> {
    let host = tcp.host.clone().unwrap_or_else(|| host.to_string());
    open(&host, port(own, &tcp.port)?).await.map(|_| ())
}

/// Asks by HTTP; a status from 200 to 399 is well.
pub(crate) async fn http_get(
    host: IpAddr,
    own: &Container,
    get: &HTTPGetAction,
) -> Result<(), String> {
    if get.scheme.as_deref() == Some("HTTPS") {
        return Err("scheme HTTPS is not supported by this node's probes: use HTTP".into());
    }
    let host = get.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| host.to_string());
    let port = port(own, &get.port)?;
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let authority =
        SocketAddr::new(host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port)
            .to_string();
    let url = format!("http://{authority}{path}");
    let stream = open(&host, port).await.map_err(|error| format!("Get {url:?}: {error}"))?;
    let wrong = |error: hyper::Error| format!("Get {url:?}: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(wrong)?;
    let mut request = http::Request::get(&path);
    let mut own_host = authority.clone();
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            own_host.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let request = request
        .header("host", own_host)
        .header("user-agent", "kube-probe/1.37")
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(wrong)?;
        let status = answer.status().as_u16();
        // Read to its end, so that the server can finish.
        let rest = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        tracing::trace!(whole = rest.is_ok(), "read a probe's answer");
        if (200..400).contains(&status) {
            Ok(())
        } else {
            Err(format!("HTTP probe failed with statuscode: {status}"))
        }
    };
    tokio::pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        ended = connection => match ended {
            Err(error) => Err(wrong(error)),
            // The answer may have come with the end of the connection.
            Ok(()) => asked.await,
        },
    }
}

/// Runs a command in the container; 0 is well.
pub(crate) async fn command(
    runtime: &dyn Runtime,
    id: &ContainerId,
    exec: &ExecAction,
) -> Result<(), String> {
    let command = exec.command.clone().unwrap_or_default();
    let said = runtime.run(id, &command).await.map_err(|error| error.to_string())?;
    let text = said.text.get(..MAX_ANSWER).unwrap_or(&said.text);
    if said.exit_code == 0 { Ok(()) } else { Err(String::from_utf8_lossy(text).trim_end().into()) }
}

/// Asks by gRPC's health protocol.
async fn health(host: IpAddr, grpc: &GRPCAction) -> Result<(), String> {
    let port =
        u16::try_from(grpc.port).map_err(|error| format!("invalid port {}: {error}", grpc.port))?;
    let stream = open(&host.to_string(), port).await?;
    let wrong = |error: hyper::Error| format!("service unhealthy (responded with {error})");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(wrong)?;
    let body = health_request(grpc.service.as_deref().unwrap_or_default());
    let authority = SocketAddr::new(host, port);
    let request = http::Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(wrong)?;
        let refused = answer.headers().get("grpc-status").cloned();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| error.to_string())?;
        let code = body.trailers().and_then(|all| all.get("grpc-status")).cloned().or(refused);
        match code.as_ref().map(http::HeaderValue::as_bytes) {
            Some(b"0") => {}
            code => {
                let code = String::from_utf8_lossy(code.unwrap_or_default()).into_owned();
                return Err(format!(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): code {code}"
                ));
            }
        }
        match health_status(&body.to_bytes()) {
            Some(1) => Ok(()),
            status => Err(format!("service unhealthy (responded with {status:?})")),
        }
    };
    tokio::pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        ended = connection => match ended {
            Err(error) => Err(wrong(error)),
            Ok(()) => asked.await,
        },
    }
}

/// `HealthCheckRequest { service = 1 }` behind gRPC's five bytes.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend(message);
    framed
}

/// `HealthCheckResponse.status`, a number in field 1; absent means 0, unknown.
fn health_status(body: &[u8]) -> Option<u8> {
    match body.get(5..)? {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_or_a_name() {
        let own: Container =
            serde_saphyr::from_str("{name: c, ports: [{name: web, containerPort: 80}]}").unwrap();
        assert_eq!(port(&own, &IntOrString::Int(1)), Ok(1));
        assert_eq!(port(&own, &IntOrString::String("web".into())), Ok(80));
        assert_eq!(port(&own, &IntOrString::String("81".into())), Ok(81));
        for bad in [IntOrString::String("none".into()), IntOrString::Int(0)] {
            port(&own, &bad).unwrap_err();
        }
    }

    #[test]
    fn grpc_health_is_written_and_read() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = "x".repeat(300);
        assert_eq!(&health_request(&long)[5..8], [0x0a, 0xac, 2]);
        assert_eq!(health_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(health_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(health_status(&[0, 0]), None);
    }
}
