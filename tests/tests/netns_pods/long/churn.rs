//! Agents that are killed under load, and a thousand pods that leave nothing.

use std::collections::BTreeSet;

use super::healing::{ask, vip};
use crate::restarts::traces;
use tests::pods::{Cluster, SOON, container, is_ready, kubectl, name};

/// How often the agent is killed.
const KILLS: usize = 20;

#[test]
fn twenty_kills_of_the_agent_under_load_are_noticed_by_nobody() {
    let mut cluster = Cluster::start("kills-load", kubectl());
    cluster.ok("create deployment stays --image=fairlead/hello --replicas=3");
    cluster.ok("expose deployment stays --port=80 --target-port=8080");
    cluster.ok("create deployment moves --image=fairlead/hello --replicas=2");
    cluster.ok("expose deployment moves --port=80 --target-port=8080");
    let ready = |c: &Cluster, app: &str, n: usize| {
        let pods = c.pods();
        let of: Vec<_> =
            pods.into_iter().filter(|pod| pod["metadata"]["labels"]["app"] == app).collect();
        Some(of).filter(|of| of.len() == n && of.iter().all(is_ready))
    };
    let stays = cluster.until("three stay", |c| ready(c, "stays", 3));
    cluster.until("two move", |c| ready(c, "moves", 2));
    let target = vip(&cluster, "stays");
    cluster.until("the Service is routed", |c| {
        let answer = c.on_node(&["curl", "-s", "-m", "5", &format!("http://{target}/")]);
        (!answer.is_empty()).then_some(())
    });
    let load = ask(&cluster, target, 100);
    assert!(load.after(100, SOON));
    for n in 0..KILLS {
        // Pods and slices change all the while: one is made and one goes, half done when it dies.
        let replicas = if n % 2 == 0 { 4 } else { 2 };
        cluster.ok(&format!("scale deployment moves --replicas={replicas}"));
        let before = load.tally().requests;
        cluster.kill_agent();
        assert!(load.after(20, SOON), "asked while there is no agent");
        cluster.start_agent();
        cluster.until("the next one does what the last one left", |c| ready(c, "moves", replicas));
        assert!(load.tally().requests > before);
    }
    let tally = load.finish().unwrap();
    assert_eq!(tally.failed, 0, "{tally:?}");
    let names: BTreeSet<String> = stays.iter().map(|pod| name(pod).to_owned()).collect();
    assert_eq!(tally.answers.keys().cloned().collect::<BTreeSet<_>>(), names);
    for before in &stays {
        let after = cluster.pod(name(before));
        assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
        let (old, new) = (container(before), container(&after));
        assert_eq!(new["restartCount"], 0);
        assert_eq!(new["containerID"], old["containerID"], "it is adopted, not started again");
        assert_eq!(new["state"], old["state"]);
    }
}

#[test]
fn a_thousand_pods_leave_nothing() {
    let cluster = Cluster::start("thousand", kubectl());
    let nothing = traces(&cluster);
    for _ in 0..20 {
        cluster.ok("create deployment many --image=fairlead/hello --replicas=50");
        cluster.until("fifty pods are ready", |c| {
            (c.pods().iter().filter(|pod| is_ready(pod)).count() == 50).then_some(())
        });
        cluster.ok("delete deployment many");
        cluster.until("nothing of them is left", |c| (traces(c) == nothing).then_some(()));
    }
}
