//! One file of questions.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use dns::config::Options;
use dns::corefile::Corefile;
use dns::respond::{Ask, LARGEST_TCP, Transport, respond};
use dns::zone::{Origin, ZoneView};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use model::cluster::Snapshot;
use model::watch;

/// When every view of the cases was made, so that the SOA's serial is known.
const NOW: u32 = 1_700_000_000;

pub(crate) struct Case {
    head: String,
    corefile: String,
    objects: String,
    pub(crate) questions: Vec<Question>,
    tail: String,
}

pub(crate) struct Question {
    /// The comment above it.
    pub(crate) rule: String,
    /// `NAME TYPE +options`.
    pub(crate) text: String,
}

impl Case {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, questions) =
            text.split_once("-- questions --\n").expect("a section of questions");
        let mut case = Self {
            head: format!("{head}-- questions --\n"),
            corefile: section(head, "Corefile").unwrap_or_default(),
            objects: section(head, "objects.yaml").unwrap_or_default(),
            questions: Vec::new(),
            tail: String::new(),
        };
        let mut rule = String::new();
        for line in questions.lines() {
            if let Some(text) = line.strip_prefix("> ") {
                case.questions.push(Question { rule: rule.clone(), text: text.to_owned() });
                rule.clear();
            } else if let Some(comment) = line.strip_prefix('#') {
                rule.push_str(comment);
                rule.push('\n');
            }
        }
        case.tail = rule;
        assert!(case.tail.is_empty(), "a rule without a question: {}", case.tail);
        // A rule holds for all questions up to the next one.
        let mut last = String::new();
        for question in &mut case.questions {
            if question.rule.is_empty() {
                question.rule.clone_from(&last);
            }
            last.clone_from(&question.rule);
        }
        case
    }

    /// The file with the answers that are given now.
    pub(crate) fn answered(&self) -> String {
        let views = Views::new(&self.corefile, &self.objects);
        let mut text = self.head.clone();
        let mut last = "";
        for question in &self.questions {
            text.push('\n');
            if question.rule != last {
                for line in question.rule.lines() {
                    writeln!(text, "#{line}").unwrap();
                }
                last = &question.rule;
            }
            writeln!(text, "> {}", question.text).unwrap();
            text.push_str(&views.answer(&question.text));
        }
        text
    }
}

fn section(head: &str, name: &str) -> Option<String> {
    let (_, rest) = head.split_once(&format!("-- {name} --\n"))?;
    let end = rest.find("\n-- ").map_or(rest.len(), |at| at + 1);
    Some(rest[..end].to_owned())
}

/// The same objects as different servers see them.
struct Views {
    synced: ZoneView,
    saved: ZoneView,
    empty: ZoneView,
}

impl Views {
    fn new(corefile: &str, objects: &str) -> Self {
        let mut options = match corefile {
            "" => Options::default(),
            text => Corefile::parse(text).unwrap().options,
        };
        // `# server: 10.96.0.10` in the Corefile says where the server is reached.
        options.addresses = corefile
            .lines()
            .filter_map(|line| line.strip_prefix("# server: "))
            .map(|address| address.parse().unwrap())
            .collect();
        let options = Arc::new(options);
        let snapshot = read(objects);
        let build = |origin| ZoneView::build(Arc::clone(&options), &snapshot, origin, NOW);
        Self {
            synced: build(Origin::Watch),
            saved: build(Origin::Saved),
            empty: ZoneView::empty(Arc::clone(&options)),
        }
    }

    fn answer(&self, text: &str) -> String {
        let mut words = text.split_whitespace();
        let name = words.next().expect("a name");
        let rtype = words.next().expect("a type");
        let mut query = Query::query(Name::from_ascii(name).unwrap(), record_type(rtype));
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let mut ask = Ask { transport: Transport::Udp, turn: 0, allowed: true };
        let mut view = &self.synced;
        let mut size_matters = false;
        for option in words {
            let (option, value) = option.split_once('=').unwrap_or((option, ""));
            match option {
                "+edns" => edns(&mut message).set_max_payload(value.parse().unwrap_or(1232)),
                "+do" => edns(&mut message).set_dnssec_ok(true),
                "+version" => edns(&mut message).set_version(value.parse().unwrap()),
                "+class" => {
                    query.set_query_class(match value {
                        "CH" => DNSClass::CH,
                        "ANY" => DNSClass::ANY,
                        other => panic!("class {other}"),
                    });
                    continue;
                }
                "+tcp" => {
                    ask.transport = Transport::Tcp;
                    continue;
                }
                "+turn" => {
                    ask.turn = value.parse().unwrap();
                    continue;
                }
                "+norec" => {
                    message.metadata.recursion_desired = false;
                    continue;
                }
                "+cd" => {
                    message.metadata.checking_disabled = true;
                    continue;
                }
                "+size" => {
                    size_matters = true;
                    continue;
                }
                "+notify" => {
                    message.metadata.op_code = OpCode::Notify;
                    continue;
                }
                "+unsynced" => {
                    view = &self.empty;
                    continue;
                }
                "+saved" => {
                    view = &self.saved;
                    continue;
                }
                "+stranger" => {
                    ask.allowed = false;
                    continue;
                }
                other => panic!("option {other}"),
            };
        }
        message.add_query(query);
        let packet = message.to_vec().unwrap();
        let mut out = vec![0; LARGEST_TCP];
        let reply = respond(view, &packet, ask, &mut out).unwrap();
        render(&out[..reply.len], size_matters)
    }
}

fn edns(message: &mut Message) -> &mut Edns {
    message.edns.get_or_insert_with(|| {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        edns
    })
}

fn record_type(text: &str) -> RecordType {
    dns::message::RecordType::parse(text).unwrap().0.into()
}

/// Reads the objects as a folder of them is read.
fn read(objects: &str) -> Snapshot {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("objects.yaml"), objects).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut watch = watch::files(dir.path(), "node-a").unwrap();
        tokio::select! {
            () = watch.task => panic!("the watch ended"),
            update = watch.feed.next() => {
                let snapshot = update.unwrap().snapshot;
                assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
                snapshot
            }
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("no snapshot"),
        }
    })
}

/// The whole of an answer, as text.
fn render(packet: &[u8], size_matters: bool) -> String {
    let message = Message::from_vec(packet).unwrap();
    let mut text = String::from("  ");
    let high = message.edns.as_ref().map_or(0, Edns::rcode_high);
    text.push_str(&rcode(message.metadata.response_code, high));
    let md = &message.metadata;
    for (flag, is_set) in [
        ("aa", md.authoritative),
        ("tc", md.truncation),
        ("rd", md.recursion_desired),
        ("ra", md.recursion_available),
        ("ad", md.authentic_data),
        ("cd", md.checking_disabled),
    ] {
        if is_set {
            write!(text, " {flag}").unwrap();
        }
    }
    if size_matters {
        write!(text, ", {} octets", packet.len()).unwrap();
    }
    text.push('\n');
    assert_eq!(md.id, 4711);
    assert_eq!(md.message_type, MessageType::Response);
    section_text(&mut text, "answer", &message.answers);
    section_text(&mut text, "authority", &message.authorities);
    section_text(&mut text, "additional", &message.additionals);
    if let Some(edns) = &message.edns {
        write!(text, "  edns {}", edns.max_payload()).unwrap();
        if edns.flags().dnssec_ok {
            text.push_str(" do");
        }
        if let Some(EdnsOption::Unknown(_, error)) = edns.option(EdnsCode::from(15)) {
            let code = u16::from_be_bytes([error[0], error[1]]);
            write!(text, " error {code}: {}", std::str::from_utf8(&error[2..]).unwrap()).unwrap();
        }
        text.push('\n');
    }
    text
}

fn section_text(text: &mut String, name: &str, records: &[Record]) {
    /// More than these are counted, not shown.
    const SHOWN: usize = 12;
    for record in records.iter().take(SHOWN) {
        writeln!(
            text,
            "  {name} {} {} {} {} {}",
            record.name,
            record.ttl,
            record.dns_class,
            record.record_type(),
            record.data
        )
        .unwrap();
    }
    if let Some(more @ 1..) = records.len().checked_sub(SHOWN) {
        writeln!(text, "  {name} and {more} more").unwrap();
    }
}

fn rcode(code: ResponseCode, high: u8) -> String {
    match u16::from(high) << 4 | u16::from(code.low()) {
        0 => "NOERROR".to_owned(),
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        16 => "BADVERS".to_owned(),
        other => format!("RCODE{other}"),
    }
}
