//! Rules in FORWARD, as a network policy's: they see who talks to whom, and connections whole.

use std::fmt::Write as _;

use sandbox::wait;

use crate::scene::{SOON, Scene, TARGET, datagram_round_trip, of, round_trip, tcp, udp};

/// Lets the client reach both echos, and nobody else anybody; connections by netfilter's own
/// conntrack, which must see both directions alike.
fn rules(scene: &Scene) -> String {
    let mut text = "table inet rules {\n  chain forward {\n    type filter hook forward priority \
                    0; policy drop;\n    ct state invalid drop\n    ct state established,related accept\n"
        .to_owned();
    for v6 in [false, true] {
        let family = if v6 { "ip6" } else { "ip" };
        let client = of(scene.client.addresses().both(), v6);
        for pod in [&scene.near_pod, &scene.far_pod] {
            let pod = of(pod.addresses().both(), v6);
            _ = writeln!(
                text,
                "    {family} saddr {client} {family} daddr {pod} meta l4proto {{ tcp, udp }} th \
                 dport {TARGET} counter accept"
            );
        }
    }
    text + "  }\n}\n"
}

#[test]
fn rules_in_forward_see_client_and_endpoint() {
    let scene = Scene::new(&[]);
    let file = scene.cluster.dir().join("policy.nft");
    std::fs::write(&file, rules(&scene)).unwrap();
    let node = scene.proxied.node();
    let output = node.command("nft").arg("-f").arg(&file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for v6 in [false, true] {
        for to in [false, true].into_iter().flat_map(|is_far| scene.frontends(is_far, v6)) {
            let mut allowed = tcp(scene.client.netns(), to)
                .unwrap_or_else(|error| panic!("the client to {to}: {error}"));
            for _ in 0..20 {
                round_trip(&mut allowed).unwrap();
            }
            let socket = udp(scene.client.netns(), v6);
            let long = vec![9; 4000];
            let answered = wait::until(SOON, || datagram_round_trip(&socket, to, &long));
            assert!(answered, "the client's datagrams to {to}");
            assert!(tcp(scene.stranger.netns(), to).is_err(), "the stranger to {to}");
        }
    }
    let listed = node.command("nft").args(["list", "table", "inet", "rules"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let counted = listed.lines().filter(|line| line.contains("counter packets"));
    for line in counted {
        assert!(!line.contains("counter packets 0 "), "never met: {line}");
    }
}
