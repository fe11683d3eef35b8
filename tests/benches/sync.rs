//! How long from a change of the cluster to the kernel? In each mode, at up to 10,000 Services of 10 endpoints.
//!
//! Inside one process: the first full sync once the list is there, then one endpoint of one Service
//! changed at a time, from the source's word to the kernel. Where programs carry the changes out
//! (`nft`, `iptables-restore`), each change takes its turn with the bare program that carries out
//! as large a change by itself (`bare`). From outside: a proxy over a folder of YAML, a client that
//! connects as fast as it can, and a file that changes; from its rename to the begin of the first
//! connection that lands at the new endpoint. And the memory of that proxy.
//!
//! `cargo xtask bench sync [CHANGES [MODE …]]`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench fails loudly, and runs the bare programs"
)]

use std::env;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loadtest::ratio::quantile;
use model::cluster::Change;
use proxy::backend::Backend;
use proxy::backend::ebpf::Ebpf;
use proxy::backend::iptables::Iptables;
use proxy::backend::nftables::Nftables;
use proxy::config::NodeConfig;
use proxy::plan::planner::Supports;
use proxy::sync::{self, Syncer};
use sandbox::fairlead::{Fairlead, ProxyOptions};
use sandbox::manifest::{Endpoint, Folder, Service, node_yaml};
use sandbox::{Node, Pod, Sandbox};
use tests::cycles::{self, Client, Cycle};
use tests::{binary, population};
use tokio::sync::watch;

const ENDPOINTS: u32 = 10;
const SIZES: [u32; 3] = [1_000, 5_000, 10_000];
const PORT: u16 = 8080;

/// The modes; the variant of iptables follows from what the kubelet would have left.
const MODES: [&str; 4] = ["ebpf", "nftables", "iptables-legacy", "iptables-nft"];
/// Where each change is a program's run, so many are enough.
const MOST_RUNS: u32 = 30;

/// No audit comes between.
const NEVER: Duration = Duration::from_secs(86_400);

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", answer] => cycles::serve(PORT, answer.parse().unwrap()).unwrap(),
        ["obey"] => cycles::obey().unwrap(),
        ["inside", mode, services, changes, bpffs, cgroup] => {
            let config = load::Config {
                bpffs: bpffs.into(),
                cgroup: Some(cgroup.into()),
                object: None,
                capacity: load::Capacity::default(),
                means: load::devices::Means::of_this_kernel(),
            };
            inside(mode, services.parse().unwrap(), changes.parse().unwrap(), config);
        }
        [changes, modes @ ..] => bench(changes.parse().unwrap(), modes),
        [] => bench(300, &MODES),
    }
}

fn bench(changes: u32, modes: &[&str]) {
    let modes = if modes.is_empty() { &MODES } else { modes };
    let cluster = Sandbox::create("bench-sync").unwrap();
    println!(
        "{changes} changes of one endpoint each, {MOST_RUNS} where a program carries them out;"
    );
    println!("times in ms, memory in MiB");
    println!();
    println!("in the process, from the source's word to the kernel");
    println!(
        "{:>16} {:>9} {:>11} {:>8} {:>8} {:>8} {:>8} {:>6}",
        "mode", "Services", "first sync", "p50", "p99", "max", "bare p50", "ratio"
    );
    for (idx, services) in SIZES.into_iter().enumerate() {
        for mode in modes {
            let node = node_with(&cluster, mode, &format!("in-{mode}-{idx}"));
            let me = env::current_exe().unwrap();
            let (bpffs, cgroup) = (node.bpffs().unwrap(), node.cgroup().to_owned());
            let output = node
                .command(&me)
                .args([
                    "inside",
                    mode,
                    &services.to_string(),
                    &n_changes(mode, changes).to_string(),
                ])
                .arg(bpffs)
                .arg(cgroup)
                .output()
                .unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{mode}: {words}");
            print!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    println!();
    println!("from outside, from the rename of a file to a connection");
    println!(
        "{:>16} {:>9} {:>11} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "mode", "Services", "start", "p50", "p99", "max", "peak RSS", "RSS"
    );
    for (idx, services) in SIZES.into_iter().enumerate() {
        for mode in modes {
            let node = node_with(&cluster, mode, &format!("out-{mode}-{idx}"));
            outside(&cluster, &node, mode, services, n_changes(mode, changes));
        }
    }
}

fn n_changes(mode: &str, changes: u32) -> u32 {
    if mode == "ebpf" { changes } else { changes.min(MOST_RUNS) }
}

/// A node; where the mode is one of iptables', the kubelet says which variant it uses.
fn node_with(cluster: &Sandbox, mode: &str, name: &str) -> Node {
    let node = cluster.node(name).unwrap();
    if mode.starts_with("iptables") {
        let hint = node.command(mode).args(["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]);
        assert!(hint.output().unwrap().status.success(), "{mode} is not installed");
    }
    node
}

fn proxy_mode(mode: &str) -> &str {
    mode.split('-').next().unwrap()
}

fn inside(mode: &str, services: u32, changes: u32, config: load::Config) {
    let mode = mode.to_owned();
    let bare = Bare::new(&mode);
    match proxy_mode(&mode) {
        "ebpf" => sync_with(Ebpf::new(config), Arc::new(Ebpf::can), &mode, services, changes, bare),
        "nftables" => {
            sync_with(Nftables::new(), Arc::new(Nftables::can), &mode, services, changes, bare);
        }
        _ => sync_with(Iptables::new(), Arc::new(Iptables::can), &mode, services, changes, bare),
    }
}

#[expect(clippy::too_many_arguments, reason = "what one row is about")]
fn sync_with<B: Backend + 'static>(
    backend: B,
    supports: Supports,
    mode: &str,
    services: u32,
    changes: u32,
    mut bare: Option<Bare>,
) {
    let node = NodeConfig::new("inside");
    let syncer = Syncer::new(backend, node, supports, Box::new(|_| Ok(()))).unwrap();
    let objects: Vec<Change> = (0..services)
        .flat_map(|number| {
            let slice = population::slice(number, ENDPOINTS, 0);
            [Change::Service(Arc::new(population::service(number))), Change::Slice(Arc::new(slice))]
        })
        .collect();

    // As in the product: the source and the cluster on one thread, the loop on another.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (script, watched) = model::watch::script("inside");
    let (rounds, mut seen) = watch::channel(None);
    let (stop, stopped) = watch::channel(false);
    let syncing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(sync::run(syncer, watched.feed, rounds, stopped, NEVER)).unwrap();
    });
    let (mut times, mut bare_times) = (Vec::new(), Vec::new());
    let mut first = Duration::ZERO;
    runtime.block_on(async {
        let changing = async {
            let listed = Instant::now();
            script.list(objects).await.unwrap();
            seen.changed().await.unwrap();
            first = listed.elapsed();
            for change in 1..=changes {
                // The first Service is left to the bare program.
                let number = 1 + change * 7 % (services - 1);
                let slice = population::slice(number, ENDPOINTS, change);
                let said = Instant::now();
                script.say([Change::Slice(Arc::new(slice))]).await.unwrap();
                seen.changed().await.unwrap();
                times.push(millis(said.elapsed()));
                let round = seen.borrow_and_update().clone().unwrap();
                assert_eq!((round.n_written, round.n_failed), (1, 0));
                if let Some(bare) = &mut bare {
                    let text = bare.change(change);
                    let began = Instant::now();
                    bare.run(&text);
                    bare_times.push(millis(began.elapsed()));
                }
            }
        };
        tokio::select! {
            () = changing => {}
            () = watched.task => unreachable!("the script is held"),
        }
    });
    stop.send_replace(true);
    syncing.join().unwrap();
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| quantile(times.iter().copied(), q));
    print!("{mode:>16} {services:>9} {:>11.1} {p50:>8.3} {p99:>8.3} {max:>8.3}", millis(first));
    if bare_times.is_empty() {
        println!();
    } else {
        let bare = quantile(bare_times.iter().copied(), 0.5);
        println!(" {bare:>8.3} {:>6.2}", p50 / bare);
    }
}

/// A program that makes as large a change as the proxy does, and nothing else.
enum Bare {
    /// `nft`: another set of ten endpoints, to which a frontend is led, in the place of the set before.
    Nft,
    /// `iptables-restore`: the chain of the first Service, with another last endpoint.
    Restore { program: String, save: String, chain: Option<(String, Vec<String>)> },
}

impl Bare {
    fn new(mode: &str) -> Option<Self> {
        match proxy_mode(mode) {
            "nftables" => Some(Self::Nft),
            "iptables" => Some(Self::Restore {
                program: format!("{mode}-restore"),
                save: format!("{mode}-save"),
                chain: None,
            }),
            _ => None,
        }
    }

    fn change(&mut self, number: u32) -> String {
        match self {
            Self::Nft => nft_change(number),
            Self::Restore { save, chain, .. } => {
                let (chain, rules) = chain.get_or_insert_with(|| chain_of_first(save));
                let last = rules.pop().unwrap();
                let (rule, _) = last.rsplit_once(' ').unwrap();
                rules.push(format!("{rule} 10.249.0.{}:8080", 1 + number % 200));
                format!("*nat\n:{chain} - [0:0]\n{}\nCOMMIT\n", rules.join("\n"))
            }
        }
    }

    fn run(&self, text: &str) {
        let mut command = match self {
            Self::Nft => {
                let mut command = Command::new("nft");
                command.args(["-f", "-"]);
                command
            }
            Self::Restore { program, .. } => {
                let mut command = Command::new(program);
                command.args(["--noflush", "--wait", "5"]);
                command
            }
        };
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
    }
}

/// What one changed endpoint is to the maps of `docs/design/nftables.md`.
fn nft_change(number: u32) -> String {
    use std::fmt::Write as _;

    let set = |number: u32| 0x7000_0000 + ((number % 2) << 12);
    let (old, new) = (set(number + 1), set(number));
    let mut text = String::new();
    let frontend = "10.250.0.1 . tcp . 80";
    let all =
        |value: &dyn Fn(u32) -> String| (0..ENDPOINTS).map(value).collect::<Vec<_>>().join(", ");
    if number > 1 {
        let gone = all(&|idx| format!("{old:#x} . {idx}"));
        _ = writeln!(text, "delete element ip fairlead endpoints {{ {gone} }}");
        let target = 0xfff_f000 + (number - 1) % 2;
        _ = writeln!(text, "delete element ip fairlead targets {{ {target:#x} }}");
        _ = writeln!(
            text,
            "delete element ip fairlead hairpin {{ 10.249.0.{0} . 10.249.0.{0} }}",
            1 + (number - 1) % 2
        );
    }
    for kind in ["node", "outside", "pod"] {
        if number > 1 {
            _ = writeln!(text, "delete element ip fairlead frontends-{kind} {{ {frontend} }}");
        }
        _ = writeln!(
            text,
            "add element ip fairlead frontends-{kind} {{ {frontend} : {:#x} }}",
            new | 3
        );
    }
    let come = all(&|idx| format!("{new:#x} . {idx} : {:#x}", 0xfff_e000 + idx));
    _ = writeln!(text, "add element ip fairlead endpoints {{ {come} }}");
    let (target, last) = (0xfff_f000 + number % 2, 1 + number % 2);
    _ = writeln!(
        text,
        "add element ip fairlead targets {{ {target:#x} : 10.249.0.{last} . 8080 }}"
    );
    _ = writeln!(text, "add element ip fairlead hairpin {{ 10.249.0.{last} . 10.249.0.{last} }}");
    text
}

/// The chain that the first Service's cluster IP leads to, and its rules.
fn chain_of_first(save: &str) -> (String, Vec<String>) {
    let saved = Command::new(save).args(["-t", "nat"]).output().unwrap();
    let saved = String::from_utf8(saved.stdout).unwrap();
    let rule = saved.lines().find(|line| line.contains("\"bench/s0:http cluster IP\"")).unwrap();
    let chain = rule.rsplit(' ').next().unwrap().to_owned();
    let of_chain = |line: &&str| line.strip_prefix("-A ").is_some_and(|it| it.starts_with(&chain));
    let rules = saved.lines().filter(of_chain).map(str::to_owned).collect();
    (chain, rules)
}

fn outside(cluster: &Sandbox, node: &Node, mode: &str, services: u32, changes: u32) {
    let me = env::current_exe().unwrap();
    let client = node.pod(&format!("client-{mode}-{services}")).unwrap();
    let servers: [(u8, Pod, Client); 2] = [1, 2].map(|answer: u8| {
        let pod = node.pod(&format!("server-{mode}-{services}-{answer}")).unwrap();
        let serve = pod.command(&me).args(["serve".to_owned(), answer.to_string()]);
        let process = Client::start(serve).unwrap();
        (answer, pod, process)
    });
    let [(_, first, _), (_, second, _)] = &servers;
    let vip: IpAddr = "10.96.0.10".parse().unwrap();
    let service = Service::new("bench", "target").cluster_ip(vip).tcp("tcp", 80, PORT);
    let folder = cluster.dir().join(format!("objects-{mode}-{services}"));
    let objects = Folder::create(&folder).unwrap();
    objects.write("node", &node_yaml(node)).unwrap();
    objects.write_service(&service, &[Endpoint::of(first)]).unwrap();
    let population: String =
        (1..services).map(|number| population::yaml(number, ENDPOINTS)).collect();
    objects.write("population", &population).unwrap();

    let options = ProxyOptions {
        objects: objects.path().to_owned(),
        cgroup: node.cgroup().to_owned(),
        bpffs: node.bpffs().unwrap(),
        names: false,
        more: vec![format!("--proxy-mode={}", proxy_mode(mode)).into()],
    };
    let fairlead = Fairlead::at(binary::fairlead());
    let log = cluster.dir().join(format!("proxy-{mode}-{services}.log"));
    let started = Instant::now();
    let mut proxy = fairlead.proxy(node, &options, &log).unwrap();
    assert!(
        proxy.wait_in_sync(&fairlead, node, &options.bpffs, Duration::from_secs(60)).unwrap(),
        "{}",
        proxy.log()
    );
    let start = millis(started.elapsed());
    let [serving, _] = memory(proxy.id());

    let mut client = Client::start(client.command(&me).arg("obey")).unwrap();
    let target = SocketAddr::new(vip, 80);
    let mut times = Vec::new();
    let in_turn = [(2, second), (1, first)].into_iter().cycle();
    for (answer, server) in in_turn.take(changes as usize) {
        client.begin_until(Cycle::Tcp, target, answer).unwrap();
        let changed = cycles::now();
        objects.write_endpoints(&service, &[Endpoint::of(server)]).unwrap();
        let landed = client.end_until().unwrap();
        times.push(Duration::from_nanos(landed.saturating_sub(changed)));
    }
    let [_, peak] = memory(proxy.id());
    let [p50, p99, max] =
        [0.5, 0.99, 1.0].map(|q| quantile(times.iter().map(|time| millis(*time)), q));
    println!(
        "{mode:>16} {services:>9} {start:>11.1} {p50:>8.3} {p99:>8.3} {max:>8.3} {peak:>9.1} \
         {serving:>9.1}"
    );
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Resident memory now and at its peak, in MiB.
fn memory(pid: u32) -> [f64; 2] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    })
}
