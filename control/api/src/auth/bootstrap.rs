//! Tokens by which nodes join, kept as upstream keeps them: Secrets of type
//! `bootstrap.kubernetes.io/token` in `kube-system`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::{Keys, User};
use crate::kinds;
use crate::object::{Key, str_at};
use crate::store::Store;

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Whom such a token makes of its bearer.
pub(crate) const GROUP: &str = "system:bootstrappers";
/// How long a token is good that nobody has chosen a time for, as upstream's.
const GOOD_FOR: SignedDuration = SignedDuration::from_hours(24);

/// A token in its two parts: what it is called, and what only its bearer knows.
#[derive(Debug, PartialEq, Eq)]
struct Token<'a> {
    id: &'a str,
    secret: &'a str,
}

impl<'a> Token<'a> {
    /// `abcdef.0123456789abcdef`.
    fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.split_once('.')?;
        let is_plain = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let is_token = id.len() == 6 && secret.len() == 16 && is_plain(id) && is_plain(secret);
        is_token.then_some(Self { id, secret })
    }
}

/// The bearer of a token that is kept, in time, and meant for this.
pub(super) fn user(keys: &Keys, store: &Store, token: &str) -> Option<User> {
    let Token { id, secret } = Token::parse(token)?;
    let key = Key::new(kinds::number("secrets"), NAMESPACE, &format!("{PREFIX}{id}"));
    let kept = store.read().get(&key)?.value();
    let is_good = str_at(&kept, "type") == TYPE
        && data(&kept, "token-id").as_deref() == Some(id)
        && data(&kept, "token-secret").is_some_and(|kept| keys.are_same(&kept, secret))
        && data(&kept, "usage-bootstrap-authentication").as_deref() == Some("true")
        && !is_over(&kept, Timestamp::now());
    is_good.then(|| {
        let more = data(&kept, "auth-extra-groups").unwrap_or_default();
        let more = more.split(',').map(str::trim).filter(|one| one.starts_with(GROUP));
        let groups = [GROUP, "system:authenticated"].into_iter().chain(more);
        User {
            name: format!("system:bootstrap:{id}"),
            uid: String::new(),
            groups: groups.map(ToOwned::to_owned).collect(),
        }
    })
}

/// Makes a token that is good for a day, and removes those that are over.
pub(crate) async fn make(store: &Store) -> Result<String, String> {
    let (id, secret) = (letters(6)?, letters(16)?);
    let expires = Timestamp::now() + GOOD_FOR;
    let (name, object) = (format!("{PREFIX}{id}"), object(&id, &secret, expires));
    let written = store.write(move |txn| {
        let number = kinds::number("secrets");
        let old = txn.list(number, Some(NAMESPACE));
        let over = old.into_iter().filter(|(_, object)| {
            let secret = object.value();
            str_at(&secret, "type") == TYPE && is_over(&secret, Timestamp::now())
        });
        for (key, object) in over.collect::<Vec<_>>() {
            txn.delete(key, object.value());
        }
        crate::seed::ensure(txn, "secrets", NAMESPACE, &name, object)
    });
    written.await.map_err(|status| status.message)?;
    Ok(format!("{id}.{secret}"))
}

fn object(id: &str, secret: &str, expires: Timestamp) -> Value {
    let encode = |text: &str| STANDARD.encode(text);
    json!({
        "type": TYPE,
        "data": {
            "token-id": encode(id),
            "token-secret": encode(secret),
            "usage-bootstrap-authentication": encode("true"),
            "expiration": encode(&expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        },
    })
}

fn data(secret: &Value, name: &str) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"][name].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// Whether a token's time is over; one that says nothing understandable is good for nothing.
fn is_over(secret: &Value, now: Timestamp) -> bool {
    match data(secret, "expiration") {
        None => false,
        Some(text) => text.parse::<Timestamp>().map_or(true, |expires| expires <= now),
    }
}

/// As many small letters and digits, none likelier than another.
fn letters(n: usize) -> Result<String, String> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let random = SystemRandom::new();
    let mut text = String::new();
    while text.len() < n {
        let mut byte = [0];
        random.fill(&mut byte).map_err(|_unspecified| "no randomness".to_owned())?;
        let [byte] = byte;
        // 252 is seven times 36.
        if byte < 252
            && let Some(letter) = LETTERS.get(usize::from(byte % 36))
        {
            text.push(char::from(*letter));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_six_letters_a_dot_and_sixteen_more() {
        let token = Token::parse("abcdef.0123456789abcdef").unwrap();
        assert_eq!((token.id, token.secret), ("abcdef", "0123456789abcdef"));
        for bad in ["", "abcdef", "abcdef.", "Abcdef.0123456789abcdef", "abcde.0123456789abcdef1"] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
        let made = format!("{}.{}", letters(6).unwrap(), letters(16).unwrap());
        assert!(Token::parse(&made).is_some(), "{made}");
    }

    #[test]
    fn a_token_is_good_until_its_time_is_over() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let kept = object("abcdef", "0123456789abcdef", at("2026-01-02T00:00:00Z"));
        assert_eq!(data(&kept, "token-id").as_deref(), Some("abcdef"));
        assert!(!is_over(&kept, at("2026-01-01T23:59:59Z")));
        assert!(is_over(&kept, at("2026-01-02T00:00:00Z")));
        let mut garbled = kept;
        garbled["data"]["expiration"] = json!(STANDARD.encode("soon"));
        assert!(is_over(&garbled, at("2026-01-01T00:00:00Z")));
    }
}
