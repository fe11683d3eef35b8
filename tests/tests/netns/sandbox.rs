//! The simulated cluster itself, without a proxy.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use sandbox::{BuildError, Sandbox, wait};

const SOON: Duration = Duration::from_secs(5);

/// A name that no other test has, even one that runs at the same time.
fn name(word: &str) -> String {
    format!("{word}-{}", std::process::id())
}

#[test]
fn pods_of_two_nodes_reach_each_other_over_both_families() {
    let started = Instant::now();
    let cluster = Sandbox::create(&name("reach")).unwrap();
    let (a, b) = (cluster.node("node-a").unwrap(), cluster.node("node-b").unwrap());
    let (client, server) = (a.pod("client").unwrap(), b.pod("server").unwrap());
    let local = a.pod("local").unwrap();
    eprintln!("built in {:?}", started.elapsed());
    for pod in [&server, &local] {
        for ip in pod.addresses().both() {
            let address = SocketAddr::new(ip, 8080);
            let listener = pod.netns().run(|| TcpListener::bind(address)).unwrap().unwrap();
            let connect = || TcpStream::connect_timeout(&address, SOON);
            let stream = client.netns().run(connect).unwrap().unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, stream.local_addr().unwrap());
            assert!(client.addresses().both().contains(&peer.ip()), "no address is translated");
        }
    }
    assert!(a.packets().unwrap().sent > 0, "node-b is reached over the link between the nodes");
}

#[test]
fn a_node_is_cut_off_and_connected_again() {
    let cluster = Sandbox::create(&name("cut")).unwrap();
    let (a, b) = (cluster.node("node-a").unwrap(), cluster.node("node-b").unwrap());
    let (client, server) = (a.pod("client").unwrap(), b.pod("server").unwrap());
    for ip in server.addresses().both() {
        let address = SocketAddr::new(ip, 8080);
        let _listener = server.netns().run(|| TcpListener::bind(address)).unwrap().unwrap();
        let connects = |within| {
            let connect = || TcpStream::connect_timeout(&address, within);
            client.netns().run(connect).unwrap().is_ok()
        };
        assert!(connects(SOON));
        b.set_connected(false).unwrap();
        assert!(!connects(Duration::from_millis(300)));
        b.set_connected(true).unwrap();
        assert!(wait::until(SOON, || connects(Duration::from_millis(300))));
    }
}

#[test]
fn a_process_runs_in_its_pods_namespace_and_cgroup() {
    let cluster = Sandbox::create(&name("process")).unwrap();
    let pod = cluster.node("node-a").unwrap().pod("web-1").unwrap();
    let show = "cat /proc/self/cgroup; cat /proc/net/fib_trie";
    let shown = pod.command("sh").args(["-c", show]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("0::/fairlead-sandbox-{}/node-a/web-1\n", cluster.name())));
    assert!(shown.contains("10.244.1.2"), "{shown}");
}

#[test]
fn nothing_is_left_of_a_sandbox() {
    let cluster = Sandbox::create(&name("gone")).unwrap();
    let node = cluster.node("node-a").unwrap();
    let bpffs = node.bpffs().unwrap();
    let pod = node.pod("web-1").unwrap();
    let mut process = pod.command("sleep").arg("1000").spawn().unwrap();
    let in_cgroup = || fs::read_to_string(pod.cgroup().join("cgroup.procs")).unwrap();
    assert!(wait::until(SOON, || !in_cgroup().is_empty()));
    let (dir, cgroup) = (cluster.dir().to_owned(), cluster.cgroup().to_owned());
    assert!(is_mounted(bpffs.parent().unwrap()));
    cluster.remove();
    process.wait(SOON).unwrap();
    assert!(!dir.exists() && !cgroup.exists() && !is_mounted(bpffs.parent().unwrap()));
}

#[test]
fn a_removed_pod_is_gone_and_its_name_free() {
    let cluster = Sandbox::create(&name("removed")).unwrap();
    let node = cluster.node("node-a").unwrap();
    let pod = node.pod("web-1").unwrap();
    let (cgroup, first) = (pod.cgroup().to_owned(), pod.addresses());
    assert!(matches!(node.pod("web-1"), Err(BuildError::Exists { .. })));
    pod.remove().unwrap();
    assert!(!cgroup.exists());
    assert_ne!(node.pod("web-1").unwrap().addresses(), first);
}

#[test]
fn a_name_in_use_is_refused_with_its_owner() {
    let cluster = Sandbox::create(&name("twice")).unwrap();
    let again = Sandbox::create(cluster.name()).unwrap_err();
    assert!(again.to_string().contains(&format!("process {}", std::process::id())), "{again}");
    cluster.node("node-a").expect("the first one is untouched");
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("procfs is mounted");
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
