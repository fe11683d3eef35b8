//! Questions that pass no socket hook: packets to the Service's address reach the node's own server,
//! and netfilter does not track them.

use super::alive::{HERE, LINK_LOCAL, LINK_LOCAL_V6, Pair, THERE};
use super::{CLUSTER_DNS, CLUSTER_DNS_V6};

/// Has netfilter track everything, as on most nodes, and count what it tracks of questions.
const TRACKING: &str = "
table inet tracking {
    set own { type ipv4_addr; elements = { 169.254.20.53, 10.96.0.10 }; }
    set own6 { type ipv6_addr; elements = { fd00:20::53, fd00:10:96::a }; }
    counter tracked { }
    counter untracked { }
    chain count {
        meta l4proto != { tcp, udp } return
        ct state untracked counter name untracked return
        counter name tracked
    }
    chain arrives {
        type filter hook input priority filter;
        ip daddr @own jump count
        ip6 daddr @own6 jump count
    }
    chain leaves {
        type filter hook output priority filter;
        ip saddr @own jump count
        ip6 saddr @own6 jump count
    }
}";

/// How many packets a counter has seen.
fn counted(pair: &Pair, counter: &str) -> u64 {
    let nft = pair.here.node().command("nft");
    let output = nft.args(["list", "counter", "inet", "tracking", counter]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    number.expect("a counter says how many packets it has seen").parse().unwrap()
}

fn packets_are_led(more: &[&str]) {
    let mut pair = Pair::new(more);
    let tracking = pair.cluster.dir().join("tracking.nft");
    std::fs::write(&tracking, TRACKING).unwrap();
    let output = pair.here.node().command("nft").arg("-f").arg(&tracking).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let asked = |pair: &Pair| {
        ["", "+tcp"].map(|over| {
            let v4 = pair.who(CLUSTER_DNS, &format!("A {over}"));
            [v4, pair.who(CLUSTER_DNS_V6, &format!("AAAA {over}"))]
        })
    };
    for orderly in [true, false] {
        assert_eq!(asked(&pair), [[HERE; 2]; 2], "{}", pair.here.log());
        // Names the server itself; nobody need know that it can be.
        assert_eq!(pair.who(LINK_LOCAL, "A"), HERE);
        assert_eq!(pair.who(LINK_LOCAL_V6, "AAAA"), HERE);
        if orderly {
            pair.here.stop_proxy();
        } else {
            pair.here.kill_proxy();
        }
        assert_eq!(asked(&pair), [[THERE; 2]; 2], "at once");
        pair.start(more);
    }
    assert!(counted(&pair, "untracked") > 20);
    assert_eq!(counted(&pair, "tracked"), 0, "{}", pair.here.log());
}

#[test]
fn packets_to_the_cluster_dns_are_led_to_the_node_s_server_untracked() {
    packets_are_led(&["--socket-lb=off"]);
}

#[test]
fn rules_lead_them_in_the_nftables_mode() {
    packets_are_led(&["--proxy-mode=nftables"]);
}
