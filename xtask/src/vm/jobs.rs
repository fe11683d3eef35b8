//! What is done on other kernels: a table, a row a job.
//!
//! Each job gets a guest of its own, so that one that hangs or takes the kernel with it takes no other along.

/// The kernels, from the oldest on.
pub(super) const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// Something to be done in a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// What it is called.
    pub(super) name: &'static str,
    /// Where it is done.
    pub(super) kernels: &'static [&'static str],
    /// What the kernel has as modules; those that they need come along.
    pub(super) modules: &'static [&'static str],
    /// Tests, each with its package; they lie in the guest's `/bin/deps`.
    pub(super) tests: &'static [(&'static str, &'static str)],
    /// Files and folders of the workspace, which are found in the guest where they were at build time.
    pub(super) files: &'static [&'static str],
    /// Files of the build folder, which tests look for beside the folder of programs.
    pub(super) target: &'static [&'static str],
    /// Programs of this machine's, which come with the libraries that they load.
    pub(super) programs: &'static [&'static str],
    /// What the guest's shell runs.
    pub(super) command: &'static str,
    /// It may take this long, on a machine that is emulated.
    pub(super) seconds: u32,
}

/// What simulated nodes and pods are made of, and what packet programs are attached by.
const NETWORK: &[&str] =
    &["bridge", "veth", "inet_diag", "tcp_diag", "udp_diag", "sch_ingress", "cls_bpf"];

/// The same, and what the modes on netfilter have: IPVS with all its schedulers, sets, rules and nftables.
const IPVS: &[&str] = &[
    "bridge",
    "veth",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "sch_ingress",
    "cls_bpf",
    "dummy",
    "sctp",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_lblc",
    "ip_vs_lblcr",
    "ip_vs_sh",
    "ip_vs_dh",
    "ip_vs_sed",
    "ip_vs_nq",
    "ip_vs_mh",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_ipportip",
    "ip_set_hash_ipportnet",
    "xt_set",
    "xt_ipvs",
    "xt_mark",
    "xt_bpf",
    "xt_comment",
    "xt_nat",
    "xt_recent",
    "xt_sctp",
    "xt_statistic",
    "xt_connmark",
    "xt_conntrack",
    "xt_addrtype",
    "xt_MASQUERADE",
    "xt_tcpudp",
    "ipt_REJECT",
    "ip6t_REJECT",
    "nft_compat",
    "nft_chain_nat",
    "nf_conntrack_netlink",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_numgen",
    "nft_hash",
    "nft_fib_inet",
    "nft_objref",
];

/// Programs for it. The guest's own shell would take its own `ip` for this one.
const NETFILTER: &[&str] = &[
    "sh",
    "ip",
    "ipset",
    "ipvsadm",
    "nft",
    "iptables",
    "ip6tables",
    "iptables-save",
    "ip6tables-save",
    "iptables-nft",
    "iptables-nft-save",
    "iptables-nft-restore",
    "ip6tables-nft",
    "ip6tables-nft-save",
    "ip6tables-nft-restore",
];

/// What iptables loads for its matches and targets.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// The tests with simulated nodes.
const NETNS: &[(&str, &str)] = &[("tests", "netns")];

/// All of them, in the order in which they are done.
pub(super) const JOBS: [Job; 10] = [
    // How large the programs are, and what verifying them takes.
    Job {
        name: "programs",
        kernels: &KERNELS,
        modules: &[],
        tests: &[("load", "kernel_programs")],
        files: &["ebpf/load/tests/programs.txt"],
        target: &[],
        programs: &[],
        command: "/bin/deps/kernel_programs --nocapture",
        seconds: 600,
    },
    // The packet table: what goes into the programs, and what comes out.
    Job {
        name: "packets",
        kernels: &KERNELS,
        modules: &[],
        tests: &[("tests", "kernel_packet")],
        files: &["tests/cases/packet"],
        target: &[],
        programs: &[],
        command: "/bin/deps/kernel_packet --test-threads=1",
        seconds: 900,
    },
    // Services with real traffic, TCP and UDP, over both families, within a node and across nodes.
    Job {
        name: "cluster-ip",
        kernels: &KERNELS,
        modules: NETWORK,
        tests: NETNS,
        files: &[],
        target: &[],
        programs: &[],
        command: "/bin/deps/netns --test-threads=1 cluster_ip::",
        seconds: 1800,
    },
    // The core of the case table, with all sockets translated, the node's alone, and none.
    Job {
        name: "cases",
        kernels: &KERNELS,
        modules: NETWORK,
        tests: &[("tests", "netns_cases")],
        files: &["tests/cases/service"],
        target: &[],
        programs: &[],
        command: "export CASE_CORE=1
            for mode in ebpf ebpf-host ebpf-packets; do
                /bin/deps/netns_cases --test-threads=1 $mode:: || exit 1
            done",
        seconds: 3600,
    },
    // Connections go on while the proxy is killed and endpoints come and go.
    Job {
        name: "zero-loss",
        kernels: &KERNELS,
        modules: NETWORK,
        tests: NETNS,
        files: &[],
        target: &[],
        programs: &[],
        command: "/bin/deps/netns --test-threads=1 --nocapture \
            zero_loss::no_connection_is_lost_to_kills_and_flapping_endpoints",
        seconds: 1800,
    },
    // Packet programs where devices have no links, and where they have.
    Job {
        name: "clsact",
        kernels: &KERNELS,
        modules: NETWORK,
        tests: NETNS,
        files: &[],
        target: &[],
        programs: &["sh", "ip", "tc"],
        command: "/bin/deps/netns --test-threads=1 clsact::",
        seconds: 1200,
    },
    // What cannot work is refused, and nothing is left of it.
    Job {
        name: "refusal",
        kernels: &KERNELS,
        modules: NETWORK,
        tests: NETNS,
        files: &[],
        target: &[],
        programs: &["sh", "setpriv"],
        command: "/bin/deps/netns --test-threads=1 refusal::",
        seconds: 1200,
    },
    // What limits pods is on version 2 of cgroups here: memory, and the number of processes.
    Job {
        name: "pods",
        kernels: &KERNELS,
        modules: NETWORK,
        tests: &[("tests", "netns_pods")],
        files: &[],
        target: &["kubectl/1.20/kubectl", "kubectl/1.32/kubectl"],
        programs: &[],
        command: "/bin/deps/netns_pods --test-threads=1 \
            trouble::a_fork_bomb long::trouble::a_fork_bomb long::trouble::who_asks_for_more",
        seconds: 1800,
    },
    // The cases with real packets in IPVS mode.
    Job {
        name: "ipvs-cases",
        kernels: &["6.1"],
        modules: IPVS,
        tests: &[("tests", "netns_cases")],
        files: &["tests/cases/service", XTABLES],
        target: &[],
        programs: NETFILTER,
        command: "CASE_MODE='ipvs=--proxy-mode=ipvs' /bin/deps/netns_cases --test-threads=1 ipvs::",
        seconds: 5400,
    },
    // What the IPVS mode does beside them.
    Job {
        name: "ipvs",
        kernels: &["6.1"],
        modules: IPVS,
        tests: NETNS,
        files: &[XTABLES],
        target: &[],
        programs: NETFILTER,
        command: "/bin/deps/netns --test-threads=1 ipvs::vm:: tour::vm::",
        seconds: 2400,
    },
];
