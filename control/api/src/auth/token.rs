//! Bearer tokens: the administrator's, and signed ones for service accounts.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::User;
use crate::kinds;
use crate::object::{Key, str_at};
use crate::store::Store;

/// The secrets that tokens are made with and checked by.
#[derive(Debug)]
pub(crate) struct Keys {
    admin: String,
    signing: hmac::Key,
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const ISSUER: &str = "https://kubernetes.default.svc";

impl Keys {
    /// Reads the secrets of a data directory, making them the first time.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let admin = secret(&directory.join("admin-token"))?;
        let signing = secret(&directory.join("signing-key"))?;
        Ok(Self { admin, signing: hmac::Key::new(hmac::HMAC_SHA256, signing.as_bytes()) })
    }

    pub(crate) fn admin_token(&self) -> &str {
        &self.admin
    }

    pub(super) fn is_admin(&self, token: &str) -> bool {
        self.are_same(&self.admin, token)
    }

    /// Compares by digests, so that the time it takes tells nothing.
    pub(super) fn are_same(&self, kept: &str, told: &str) -> bool {
        let tag = hmac::sign(&self.signing, kept.as_bytes());
        hmac::verify(&self.signing, told.as_bytes(), tag.as_ref()).is_ok()
    }

    pub(super) fn issue(&self, namespace: &str, name: &str, uid: &str, expires: i64) -> String {
        let claims = json!({
            "iss": ISSUER, "aud": [ISSUER], "exp": expires,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "kubernetes.io": {
                "namespace": namespace, "serviceaccount": {"name": name, "uid": uid},
            },
        });
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(HEADER), encode(&claims.to_string()));
        let tag = hmac::sign(&self.signing, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// The service account of a token that is genuine, in time, and whose account still exists.
    pub(super) fn service_account(&self, store: &Store, token: &str) -> Option<User> {
        let (signed, tag) = token.rsplit_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.signing, signed.as_bytes(), &tag).ok()?;
        let (_, claims) = signed.split_once('.')?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        if claims["exp"].as_i64()? <= jiff::Timestamp::now().as_second() {
            return None;
        }
        let account = &claims["kubernetes.io"];
        let (namespace, name) =
            (str_at(account, "namespace"), str_at(account, "serviceaccount.name"));
        let key = Key::new(kinds::number("serviceaccounts"), namespace, name);
        let stored = store.read().get(&key)?.value();
        let uid = str_at(account, "serviceaccount.uid");
        if uid != str_at(&stored, "metadata.uid") {
            return None;
        }
        Some(User {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: super::account_groups(namespace),
        })
    }
}

/// A secret kept in a file that only its owner reads.
fn secret(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(secret) if !secret.trim().is_empty() => return Ok(secret.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_unspecified| io::Error::other("no randomness"))?;
    let secret = URL_SAFE_NO_PAD.encode(bytes);
    write_private(path, secret.as_bytes())?;
    Ok(secret)
}

/// Writes a file that only its owner reads. Who reads it meanwhile sees the old one or the new.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A pipe or a terminal is written to, not replaced.
    if path.metadata().is_ok_and(|known| !known.is_file()) {
        return std::fs::write(path, bytes);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(partial, path)
}
