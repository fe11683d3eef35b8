//! The server's certificate authority and its own certificate, made once and kept.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::allocate::Ranges;
use crate::auth::write_private;

/// What HTTPS needs.
pub(crate) struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    /// The authority's certificate, for clients.
    pub(crate) authority: String,
    /// The hash of its public key, by which a node knows it that has nothing else.
    pub(crate) hash: String,
}

/// Reads or makes the authority; the server's certificate is made anew at each start, because
/// its addresses may have changed.
pub(crate) fn open(
    data: &Path,
    listen: IpAddr,
    advertise: IpAddr,
    ranges: &Ranges,
) -> Result<Identity, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (key_path, cert_path) = (data.join("ca.key"), data.join("ca.crt"));
    let issuer = match std::fs::read_to_string(&key_path) {
        Ok(pem) => {
            let key = KeyPair::from_pem(&pem).map_err(|e| text(&e))?;
            CertifiedIssuer::self_signed(authority(), key).map_err(|e| text(&e))?
        }
        Err(_) => {
            let key = KeyPair::generate().map_err(|e| text(&e))?;
            write_private(&key_path, key.serialize_pem().as_bytes()).map_err(|e| text(&e))?;
            CertifiedIssuer::self_signed(authority(), key).map_err(|e| text(&e))?
        }
    };
    let authority = match std::fs::read_to_string(&cert_path) {
        Ok(pem) => pem,
        Err(_) => {
            let pem = issuer.pem();
            write_private(&cert_path, pem.as_bytes()).map_err(|e| text(&e))?;
            pem
        }
    };
    let key = KeyPair::generate().map_err(|e| text(&e))?;
    let own = own(listen, advertise, ranges).map_err(|e| text(&e))?;
    let own = own.signed_by(&key, &issuer).map_err(|e| text(&e))?;
    // The authority's own is shown as well: nodes that join have only its hash.
    let chain = [&own.pem(), &authority];
    let chain = chain.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
    let chain = chain.into_iter().collect::<Result<_, _>>().map_err(|e| text(&e))?;
    let key =
        PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).map_err(|e| text(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| text(&e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| text(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let digest = digest::digest(&digest::SHA256, &issuer.key().subject_public_key_info());
    let hash = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Ok(Identity { acceptor, authority, hash: format!("sha256:{hash}") })
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "fairlead");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn own(
    listen: IpAddr,
    advertise: IpAddr,
    ranges: &Ranges,
) -> Result<CertificateParams, rcgen::Error> {
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut params = CertificateParams::new(names.map(String::from))?;
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    let first = ranges.service_cidrs.iter().filter_map(|cidr| cidr.hosts().next());
    let loopback = [IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()];
    for ip in [listen, advertise].into_iter().chain(loopback).chain(first) {
        params.subject_alt_names.push(SanType::IpAddress(ip));
    }
    Ok(params)
}
