//! How long from a change of the cluster to the kernel? At 1,000 and 10,000 Services of 10 endpoints.
//!
//! Inside one process: the first full sync once the list is there, then one endpoint of one Service
//! changed at a time, from the source's word to the head in the kernel. From outside: a proxy over a
//! folder of YAML, a client that connects as fast as it can, and a file that changes; from its
//! rename to the begin of the first connection that lands at the new endpoint. And the memory of
//! that proxy.
//!
//! `cargo xtask bench sync [CHANGES]`

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails loudly")]

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loadtest::ratio::quantile;
use model::cluster::Change;
use proxy::backend::ebpf::Ebpf;
use proxy::config::NodeConfig;
use proxy::sync::{self, Syncer};
use sandbox::fairlead::{Fairlead, ProxyOptions};
use sandbox::manifest::{Endpoint, Folder, Service, node_yaml};
use sandbox::{Node, Pod, Sandbox};
use tests::cycles::{self, Client, Cycle};
use tests::{binary, population};
use tokio::sync::watch;

const ENDPOINTS: u32 = 10;
const SIZES: [u32; 2] = [1_000, 10_000];
const PORT: u16 = 8080;

/// No audit comes between.
const NEVER: Duration = Duration::from_secs(86_400);

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("serve") => cycles::serve(PORT, words.get(1).unwrap().parse().unwrap()).unwrap(),
        Some("obey") => cycles::obey().unwrap(),
        other => bench(other.and_then(|word| word.parse().ok()).unwrap_or(300)),
    }
}

fn bench(changes: u32) {
    let cluster = Sandbox::create("bench-sync").unwrap();
    println!("{changes} changes of one endpoint each; times in ms, memory in MiB");
    println!();
    println!("in the process, from the source's word to the kernel");
    println!("{:>9} {:>11} {:>7} {:>7} {:>7}", "Services", "first sync", "p50", "p99", "max");
    for (idx, services) in SIZES.into_iter().enumerate() {
        let node = cluster.node(&format!("inside-{idx}")).unwrap();
        inside(&node, services, changes);
    }
    println!();
    println!("from outside, from the rename of a file to a connection");
    println!(
        "{:>9} {:>11} {:>7} {:>7} {:>7} {:>9} {:>9}",
        "Services", "start", "p50", "p99", "max", "peak RSS", "RSS"
    );
    for (idx, services) in SIZES.into_iter().enumerate() {
        let node = cluster.node(&format!("outside-{idx}")).unwrap();
        outside(&cluster, &node, services, changes);
    }
}

fn inside(node: &Node, services: u32, changes: u32) {
    let config = load::Config {
        bpffs: node.bpffs().unwrap(),
        cgroup: Some(node.cgroup().to_owned()),
        object: None,
        capacity: load::Capacity::default(),
    };
    let syncer = Syncer::new(
        Ebpf::new(config),
        NodeConfig::new("inside"),
        Arc::new(Ebpf::can),
        Box::new(|_| Ok(())),
    )
    .unwrap();
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
    let mut times = Vec::new();
    let mut first = Duration::ZERO;
    runtime.block_on(async {
        let changing = async {
            let listed = Instant::now();
            script.list(objects).await.unwrap();
            seen.changed().await.unwrap();
            first = listed.elapsed();
            for change in 1..=changes {
                let slice = population::slice(change * 7 % services, ENDPOINTS, change);
                let said = Instant::now();
                script.say([Change::Slice(Arc::new(slice))]).await.unwrap();
                seen.changed().await.unwrap();
                times.push(millis(said.elapsed()));
                assert_eq!(seen.borrow_and_update().as_ref().unwrap().n_written, 1);
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
    println!("{services:>9} {:>11.1} {p50:>7.3} {p99:>7.3} {max:>7.3}", millis(first));
}

fn outside(cluster: &Sandbox, node: &Node, services: u32, changes: u32) {
    let me = env::current_exe().unwrap();
    let client = node.pod(&format!("client-{services}")).unwrap();
    let servers: [(u8, Pod, Client); 2] = [1, 2].map(|answer: u8| {
        let pod = node.pod(&format!("server-{services}-{answer}")).unwrap();
        let serve = pod.command(&me).args(["serve".to_owned(), answer.to_string()]);
        let process = Client::start(serve).unwrap();
        (answer, pod, process)
    });
    let [(_, first, _), (_, second, _)] = &servers;
    let vip: IpAddr = "10.96.0.10".parse().unwrap();
    let service = Service::new("bench", "target").cluster_ip(vip).tcp("tcp", 80, PORT);
    let objects = Folder::create(&cluster.dir().join(format!("objects-{services}"))).unwrap();
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
        more: Vec::new(),
    };
    let fairlead = Fairlead::at(binary::fairlead());
    let log = cluster.dir().join(format!("proxy-{services}.log"));
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
        "{services:>9} {start:>11.1} {p50:>7.3} {p99:>7.3} {max:>7.3} {peak:>9.1} {serving:>9.1}"
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
