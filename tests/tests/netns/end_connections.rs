//! TCP connections whose endpoint serves no more are ended where their Service asks for that.

/// Run by `cargo xtask test --all`.
mod long {
    use sandbox::traffic::Protocol;
    use tests::cluster::{Cluster, SOON, endpoints, eventually};

    #[test]
    fn connections_to_an_endpoint_that_left_end_where_their_service_asks_for_it_and_nowhere_else() {
        let cluster = Cluster::new();
        let mut node = cluster.node("node-a");
        let webs = node.webs(["web-1", "web-2"]);
        let client = node.pod("client");
        let (ended, kept) = (cluster.service("ended", &webs), cluster.service("kept", &webs));
        cluster.annotate(&ended, "fairlead.dev/end-connections", "true");
        node.start_proxy();
        let [ended_load, mapped_load, kept_load, direct_load] = [
            ended.v4(),
            ended.mapped(),
            kept.v4(),
            // Past the Service, to the endpoint that leaves it.
            (webs[0].pod.addresses().v4, 8080).into(),
        ]
        .map(|target| cluster.load(&client, Protocol::TcpKept, target));
        for load in [&ended_load, &mapped_load, &kept_load] {
            eventually("both endpoints are connected to", || load.tally().answers.len() == 2);
        }
        assert!(direct_load.after(20, SOON));
        // The server runs on: it is the Services that have let go of it.
        for service in [&ended, &kept] {
            cluster.set_endpoints(service, &endpoints(&webs[1..]));
        }
        eventually("connections are ended", || {
            ended_load.tally().failed > 0 && mapped_load.tally().failed > 0
        });
        for load in [kept_load, direct_load] {
            // As many again as there are connections: each was used since.
            let n = load.tally().answered + 2 * u64::from(tests::cluster::RATE);
            eventually("others go on", || load.tally().answered > n);
            assert_eq!(load.finish().unwrap().failed, 0, "they are let alone");
        }
        for load in [ended_load, mapped_load] {
            let tally = load.finish().unwrap();
            // As it is noticed: while it waits for an answer, or when it is used again.
            let of_the_end = |failure: &String| {
                ["ECONNABORTED", "ECONNRESET", "ENOTCONN", "EPIPE"]
                    .iter()
                    .any(|it| failure.ends_with(it))
            };
            assert!(tally.failures.keys().all(of_the_end), "{tally:?}");
            assert!(tally.failed <= u64::from(tests::cluster::RATE), "each fails once: {tally:?}");
        }
    }
}
