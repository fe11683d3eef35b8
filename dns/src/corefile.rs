//! A `Corefile`: what it says about cluster names, health and metrics.
//!
//! Plugins that serve other names are not run. The ones that a cluster's Corefile usually has
//! beside `kubernetes` are named as problems and their names refused, so that the file can be used
//! as it is; any other plugin is an error.

mod kubernetes;
mod token;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use model::problem::Problem;
use thiserror::Error;

use crate::config::{Options, Zone};
use token::{Line, Token, tokens};

/// What a Corefile configures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corefile {
    /// The options of its `kubernetes` plugin.
    pub options: Options,
    /// The port of that plugin's server block.
    pub port: u16,
    /// `health`: where liveness is asked.
    pub health: Option<SocketAddr>,
    /// `health { lameduck }`: how long to go on serving when told to stop.
    pub lameduck: Duration,
    /// `ready`: where readiness is asked.
    pub ready: Option<SocketAddr>,
    /// `prometheus`: where metrics are read.
    pub metrics: Option<SocketAddr>,
    /// What is left out.
    pub problems: Vec<Problem>,
}

/// A Corefile that cannot be followed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("Corefile, line {line}: {what}; {remedy}")]
pub struct ParseCorefileError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong, with the value.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl ParseCorefileError {
    fn new(line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line, what: what.into(), remedy: remedy.into() }
    }
}

/// One server block, or one plugin with its own block.
#[derive(Clone, Debug)]
struct Block<'t> {
    line: usize,
    words: Vec<&'t str>,
    inner: Vec<Self>,
}

impl Corefile {
    /// Reads a Corefile.
    ///
    /// # Errors
    /// Text that is no Corefile, or asks for what cannot be done.
    pub fn parse(text: &str) -> Result<Self, ParseCorefileError> {
        let mut lines = tokens(text)?;
        let servers = blocks(&mut lines, None)?;
        let mut file = Self {
            options: Options {
                ttl: 5,
                pods: crate::config::PodMode::Disabled,
                ..Options::default()
            },
            port: 53,
            health: None,
            lameduck: Duration::ZERO,
            ready: None,
            metrics: None,
            problems: Vec::new(),
        };
        let mut kubernetes_at = None;
        for server in &servers {
            let keys = server_keys(server)?;
            for plugin in &server.inner {
                if plugin.words.first() == Some(&"kubernetes") {
                    if let Some(line) = kubernetes_at.replace(plugin.line) {
                        let what = format!("a second kubernetes, after line {line}");
                        return Err(ParseCorefileError::new(
                            plugin.line,
                            what,
                            "list all zones in one",
                        ));
                    }
                    file.options = kubernetes::options(plugin, &keys.zones, &mut file.problems)?;
                    file.port = keys.port;
                } else {
                    file.plugin(plugin)?;
                }
            }
        }
        match kubernetes_at {
            Some(_) => Ok(file),
            None => Err(ParseCorefileError::new(
                1,
                "no kubernetes plugin",
                "add one: it is what is served",
            )),
        }
    }

    fn plugin(&mut self, plugin: &Block<'_>) -> Result<(), ParseCorefileError> {
        let line = plugin.line;
        let Some((&name, arguments)) = plugin.words.split_first() else { return Ok(()) };
        let mut problem = |reason: &str| {
            self.problems.push(Problem::new("Corefile", format!("line {line}: {name}"), reason));
        };
        match name {
            // What these do is done anyway: errors are logged, answers rotated.
            "errors" | "log" | "loadbalance" | "bufsize" => {}
            // Nothing is forwarded, so nothing is cached and nothing can loop.
            "cache" | "loop" => {}
            "forward" => problem(
                "names outside the cluster are refused; let pods ask their node's resolver for them",
            ),
            "reload" => problem("the file is read once; restart after changing it"),
            "health" => {
                self.health = Some(address(line, arguments, 8080)?);
                for option in &plugin.inner {
                    match *option.words {
                        ["lameduck", duration] => {
                            self.lameduck = go_duration(option.line, duration)?;
                        }
                        _ => return Err(unknown_option(name, option, "lameduck DURATION")),
                    }
                }
            }
            "ready" => self.ready = Some(address(line, arguments, 8181)?),
            "prometheus" => self.metrics = Some(address(line, arguments, 9153)?),
            _ => {
                let what = format!("the plugin {name:?} is not served");
                return Err(ParseCorefileError::new(line, what, "remove it"));
            }
        }
        Ok(())
    }
}

fn unknown_option(plugin: &str, option: &Block<'_>, known: &str) -> ParseCorefileError {
    let what = format!("{plugin} has no option {:?}", option.words.join(" "));
    ParseCorefileError::new(option.line, what, format!("known are {known}"))
}

/// What the keys of a server block say.
#[derive(Clone, Debug)]
struct ServerKeys {
    zones: Vec<String>,
    port: u16,
}

/// Reads `.:53`, `cluster.local`, `dns://10.in-addr.arpa:1053`, with commas or without.
fn server_keys(server: &Block<'_>) -> Result<ServerKeys, ParseCorefileError> {
    let mut keys = ServerKeys { zones: Vec::new(), port: 53 };
    for key in server.words.iter().flat_map(|word| word.split(',')).filter(|key| !key.is_empty()) {
        let error =
            |what: String| ParseCorefileError::new(server.line, what, "write ZONE or ZONE:PORT");
        let rest = match key.split_once("://") {
            None => key,
            Some(("dns", rest)) => rest,
            Some((scheme, _)) => return Err(error(format!("{scheme} is not served"))),
        };
        let zone = match rest.rsplit_once(':') {
            Some((zone, port)) if !zone.contains(':') => {
                keys.port = port.parse().map_err(|_not| error(format!("{port:?} is no port")))?;
                zone
            }
            _ => rest,
        };
        keys.zones.push(zone.to_owned());
    }
    Ok(keys)
}

/// Reads `:8080`, `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`; without host, every address.
fn address(line: usize, arguments: &[&str], port: u16) -> Result<SocketAddr, ParseCorefileError> {
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let error = |text: &str| {
        ParseCorefileError::new(line, format!("{text:?} is no address"), "write ADDRESS:PORT")
    };
    match *arguments {
        [] => Ok(SocketAddr::new(any, port)),
        [text] => match text.strip_prefix(':') {
            Some(port) => {
                port.parse().map(|port| SocketAddr::new(any, port)).map_err(|_not| error(text))
            }
            None => text.replace("localhost:", "127.0.0.1:").parse().map_err(|_not| error(text)),
        },
        [_, second, ..] => Err(error(second)),
    }
}

/// Reads a duration as Go writes it: `5s`, `1m30s`, `250ms`; a bare `0`.
fn go_duration(line: usize, text: &str) -> Result<Duration, ParseCorefileError> {
    let error =
        || ParseCorefileError::new(line, format!("{text:?} is no duration"), "write 5s, or 1m30s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() && rest != "0" {
        let (number, after) =
            rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?);
        let (unit, after) =
            after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let number: u64 = number.parse().map_err(|_not| error())?;
        total += match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.saturating_mul(60)),
            "h" => Duration::from_secs(number.saturating_mul(3600)),
            _ => return Err(error()),
        };
        rest = after;
    }
    Ok(total)
}

/// Reads blocks until the end of the text, or the brace that closes the one opened at `opened`.
fn blocks<'t>(
    lines: &mut impl Iterator<Item = Line<'t>>,
    opened: Option<usize>,
) -> Result<Vec<Block<'t>>, ParseCorefileError> {
    let mut found = Vec::new();
    while let Some(Line { number, tokens }) = lines.next() {
        let mut block = Block { line: number, words: Vec::new(), inner: Vec::new() };
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                Token::Word(word) => block.words.push(word),
                Token::Open if tokens.peek().is_none() && !block.words.is_empty() => {
                    block.inner = blocks(lines, Some(number))?;
                }
                Token::Close
                    if block.words.is_empty() && tokens.peek().is_none() && opened.is_some() =>
                {
                    return Ok(found);
                }
                Token::Open | Token::Close => {
                    let what = "a brace in the wrong place";
                    let remedy =
                        "an opening brace ends its line, a closing one has a line of its own";
                    return Err(ParseCorefileError::new(number, what, remedy));
                }
            }
        }
        found.push(block);
    }
    match opened {
        Some(line) => {
            Err(ParseCorefileError::new(line, "a block that is never closed", "add a brace"))
        }
        None => Ok(found),
    }
}

/// Reads zone names and address ranges.
fn zones(line: usize, words: &[&str]) -> Result<Vec<Zone>, ParseCorefileError> {
    let mut zones = Vec::new();
    for word in words {
        if let Ok(range) = word.parse::<ipnet::IpNet>() {
            zones.extend(Zone::of_range(range));
            continue;
        }
        zones.push(Zone::parse(word).map_err(|error| {
            ParseCorefileError::new(
                line,
                format!("{word:?} is no zone: {error}"),
                "write a domain or a range",
            )
        })?);
    }
    Ok(zones)
}

#[cfg(test)]
mod tests;
