//! `fairlead dig`: what would be answered for a name, and why.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use dns::answer::record::Shown;
use dns::answer::{Answer, Go};
use dns::explain::why;
use dns::message::RecordType;
use dns::name::{LowerName, WireName};
use dns::server::clock;
use dns::zone::{Origin, ZoneView};
use serde::Serialize;

use crate::dns::NameArgs;
use crate::node_args::SourceArgs;
use crate::plan::{Output, snapshot_of_everything};

/// A name with fewer dots than this is looked for in the search list first (dnsPolicy
/// `ClusterFirst`).
const NDOTS: usize = 5;

/// Say what would be answered for a name, and why: the records, the Service behind them, and with
/// --from-pod each name that the pod's search list makes of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The name, `web.shop.svc.cluster.local`.
    #[arg(value_name = "NAME")]
    name: String,
    /// A, AAAA, SRV, PTR, CNAME, TXT, SOA, NS, or TYPE65 and the like.
    #[arg(value_name = "TYPE", default_value = "A", value_parser = record_type)]
    rtype: RecordType,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
    /// Ask as this pod would, through the search list of dnsPolicy `ClusterFirst`.
    #[arg(long, value_name = "NS/POD")]
    from_pod: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

fn record_type(text: &str) -> Result<RecordType, String> {
    RecordType::parse(text).ok_or_else(|| format!("{text:?} is no type; write A, AAAA, SRV …"))
}

/// One question and what is said to it.
#[derive(Debug, Serialize)]
struct Told {
    name: String,
    #[serde(rename = "type")]
    rtype: String,
    rcode: &'static str,
    authoritative: bool,
    answer: Vec<String>,
    authority: Vec<String>,
    additional: Vec<String>,
    why: Vec<String>,
    /// The names that were tried before, and what was said to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tried: Vec<Tried>,
}

#[derive(Debug, Serialize)]
struct Tried {
    name: String,
    rcode: &'static str,
}

/// Prints the answer, whatever it is.
///
/// # Errors
/// The flags mean nothing, or the objects cannot be listed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = Arc::new(args.names.read()?);
    let candidates = candidates(args, &options)?;
    let snapshot = snapshot_of_everything(&args.source)?;
    let view = ZoneView::build(options, &snapshot, Origin::Watch, clock::serial());
    let mut tried = Vec::new();
    let mut last = None;
    for name in candidates {
        let told = tell(&view, &name, args.rtype)?;
        if !told.answer.is_empty() {
            last = Some(told);
            break;
        }
        if let Some(before) = last.replace(told) {
            tried.push(Tried { name: before.name, rcode: before.rcode });
        }
    }
    let mut told = last.context("no name to ask for")?;
    told.tried = tried;
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &told)?;
            writeln!(out)?;
        }
        Output::Text => print(&mut out, &told)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The names that are asked for, one after the other until one has an answer.
fn candidates(args: &Args, options: &dns::config::Options) -> anyhow::Result<Vec<String>> {
    let own = args.name.clone();
    let Some(pod) = &args.from_pod else { return Ok(vec![own]) };
    let (namespace, _pod) =
        pod.split_once('/').with_context(|| format!("--from-pod={pod}: write NS/POD"))?;
    if own.ends_with('.') {
        return Ok(vec![own]);
    }
    let zone = options.zones.first().context("no cluster domain")?.name.to_string();
    let mut names: Vec<String> = [format!("{namespace}.svc.{zone}"), format!("svc.{zone}"), zone]
        .iter()
        .map(|search| format!("{own}.{search}"))
        .collect();
    let is_whole = own.matches('.').count() >= NDOTS;
    names.insert(if is_whole { 0 } else { names.len() }, own);
    Ok(names)
}

fn tell(view: &ZoneView, text: &str, rtype: RecordType) -> anyhow::Result<Told> {
    let wire = WireName::parse(text).with_context(|| format!("{text:?} is no domain name"))?;
    let name = LowerName::parse(wire.wire())?;
    let answer = Answer::of(view, &name, rtype);
    let mut sections = [Vec::new(), Vec::new(), Vec::new()];
    let [in_answer, in_authority, in_additional] = &mut sections;
    let show = |record| Shown { record, asked: wire.wire() }.to_string();
    let whole = answer.answers(view, 0, &mut |record| keep(in_answer, show(record))).is_continue()
        && answer.authorities(view, &mut |record| keep(in_authority, show(record))).is_continue()
        && answer
            .additionals(view, 0, &mut |record| keep(in_additional, show(record)))
            .is_continue();
    anyhow::ensure!(whole, "the answer to {text:?} was not told whole");
    let why = why(view, &name, rtype, &answer);
    let [in_answer, in_authority, in_additional] = sections;
    Ok(Told {
        name: wire.to_string(),
        rtype: rtype.to_string(),
        rcode: answer.rcode.name(),
        authoritative: answer.is_authoritative(),
        answer: in_answer,
        authority: in_authority,
        additional: in_additional,
        why,
        tried: Vec::new(),
    })
}

fn keep(section: &mut Vec<String>, record: String) -> Go {
    section.push(record);
    Go::Continue(())
}

fn print(out: &mut impl Write, told: &Told) -> std::io::Result<()> {
    for tried in &told.tried {
        writeln!(out, "{} {}: {}", tried.name, told.rtype, tried.rcode)?;
    }
    let authoritative = if told.authoritative { ", authoritative" } else { "" };
    writeln!(out, "{} {}: {}{authoritative}", told.name, told.rtype, told.rcode)?;
    for (section, records) in
        [("answer", &told.answer), ("authority", &told.authority), ("additional", &told.additional)]
    {
        for record in records {
            writeln!(out, "  {section:<11}{record}")?;
        }
    }
    writeln!(out, "why")?;
    for line in &told.why {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}
