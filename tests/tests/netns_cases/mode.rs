//! The modes that the cases are played in, and what cannot be shown with packets, with the reason.

use std::env;

use tests::case::Expectation;

/// A dataplane under test.
#[derive(Clone, Debug)]
pub(crate) struct Mode {
    /// What its tests are named after.
    pub(crate) name: String,
    /// The backend, as the case files name it.
    pub(crate) backend: String,
    /// What the proxy is told.
    pub(crate) args: Vec<String>,
}

/// Name, then what the proxy is told.
const MODES: [(&str, &str); 1] = [("nftables", "--proxy-mode=nftables")];

/// What cannot be shown: file, source, destination (each may be empty: any), and why.
const UNSHOWN: [(&str, &str, &str, &str); 2] = [
    (
        "2.16-external-ips.txt",
        "client",
        "224.0.0.1:80",
        "no TCP socket connects to a multicast address",
    ),
    (
        "2.10-detect-local-families.txt",
        "10.244.2.1",
        "",
        "the address is another node's as well, which takes no packet from it",
    ),
];

/// All modes, or the one that `CASE_MODE` tells of.
pub(crate) fn modes() -> Vec<Mode> {
    match env::var("CASE_MODE") {
        Ok(text) => {
            let (name, args) = text.split_once('=').expect("CASE_MODE is NAME=ARGUMENTS");
            vec![Mode::new(name, args)]
        }
        Err(_) => MODES.iter().map(|(name, args)| Mode::new(name, args)).collect(),
    }
}

impl Mode {
    fn new(name: &str, args: &str) -> Self {
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        let backend = args.iter().find_map(|arg| arg.strip_prefix("--proxy-mode="));
        let backend = backend.expect("a mode names its --proxy-mode").to_owned();
        Self { name: name.to_owned(), backend, args }
    }
}

/// Why an expectation cannot be shown with packets; `None` if it can.
pub(crate) fn unshown(file: &str, expectation: &Expectation) -> Option<&'static str> {
    let to = expectation.to.to_string();
    let (_, _, _, reason) = UNSHOWN.iter().find(|(in_file, from, at, _)| {
        *in_file == file
            && (from.is_empty() || *from == expectation.from)
            && (at.is_empty() || *at == to)
    })?;
    Some(reason)
}
