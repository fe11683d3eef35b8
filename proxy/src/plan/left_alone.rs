//! Whose sockets are left alone: pods that ask for it, or whose Namespace does. `[pure]`
//!
//! A mesh looks at a pod's sockets and packets for the address that a program named, which is not there
//! any more once a socket has been translated. Packets are translated when they have left the pod.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use model::cluster::Snapshot;
use model::name::NamespacedName;
use model::pod::{Pod, SOCKET_LB, SocketLb};
use model::problem::Problem;

/// The pods of this node whose sockets are left alone, and those for which it cannot be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftAlone {
    /// By name.
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// Ordered by name as well.
    pub problems: Vec<Problem>,
}

impl LeftAlone {
    /// A pod's own word counts before its Namespace's.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut all = Self::default();
        for (name, pod) in &snapshot.pods {
            let of_namespace = snapshot.socket_lb.get(&name.namespace).copied();
            if pod.socket_lb.or(of_namespace) != Some(SocketLb::Off) {
                continue;
            }
            if pod.host_network {
                all.problems.push(shares_the_nodes(pod));
            } else {
                all.pods.insert(name.clone(), Arc::clone(pod));
            }
        }
        all
    }
}

fn shares_the_nodes(pod: &Pod) -> Problem {
    let of = if pod.socket_lb.is_some() { "it" } else { "its Namespace" };
    Problem::new(
        format_args!("Pod {}", pod.name),
        format!("metadata.annotations[{SOCKET_LB}]"),
        format_args!(
            "{of} says \"off\", but with hostNetwork its sockets are the node's, which are not told apart \
             and go on being translated; say \"on\" here, or start the proxy with --socket-lb=off"
        ),
    )
}

/// A line a pod.
impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.pods.is_empty() {
            writeln!(f, "\nSockets left alone")?;
        }
        for (name, pod) in &self.pods {
            let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            writeln!(f, "  Pod {name} ({})", addresses.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Option<SocketLb> = Some(SocketLb::On);
    const OFF: Option<SocketLb> = Some(SocketLb::Off);

    fn left_alone(pod: Option<SocketLb>, namespace: Option<SocketLb>, host: bool) -> LeftAlone {
        let pod = Pod {
            name: NamespacedName::new("shop", "web-0"),
            uid: "u-1".into(),
            node_name: Some("here".into()),
            host_network: host,
            addresses: vec![[10, 1, 0, 7].into()],
            socket_lb: pod,
            host_ports: None,
        };
        let mut snapshot = Snapshot::default();
        if let Some(said) = namespace {
            snapshot.socket_lb.insert("shop".into(), said);
        }
        snapshot.pods.insert(pod.name.clone(), Arc::new(pod));
        // Another namespace's word is nothing to this one.
        snapshot.socket_lb.insert("bank".into(), SocketLb::Off);
        LeftAlone::of(&snapshot)
    }

    #[test]
    fn the_pods_word_counts_before_its_namespaces() {
        for (pod, namespace, expected) in [
            (None, None, false),
            (None, ON, false),
            (None, OFF, true),
            (ON, None, false),
            (ON, OFF, false),
            (ON, ON, false),
            (OFF, None, true),
            (OFF, ON, true),
            (OFF, OFF, true),
        ] {
            let found = left_alone(pod, namespace, false);
            assert_eq!(found.pods.len(), usize::from(expected), "{pod:?} in {namespace:?}");
            assert_eq!(found.problems, [], "{pod:?} in {namespace:?}");
        }
        let text = left_alone(OFF, None, false).to_string();
        assert_eq!(text, "\nSockets left alone\n  Pod shop/web-0 (10.1.0.7)\n");
        assert_eq!(left_alone(None, None, false).to_string(), "");
    }

    #[test]
    fn a_pod_on_the_nodes_network_is_refused_with_what_and_where() {
        for (pod, namespace, of) in [(OFF, None, "it says"), (None, OFF, "its Namespace says")] {
            let found = left_alone(pod, namespace, true);
            let [problem] = found.problems.as_slice() else { panic!("{found:?}") };
            let told = problem.to_string();
            let begins = "Pod shop/web-0: metadata.annotations[fairlead.dev/socket-lb]: ";
            assert!(told.starts_with(&format!("{begins}{of} \"off\"")), "{told}");
            assert!(found.pods.is_empty());
        }
        assert_eq!(left_alone(ON, OFF, true), LeftAlone::default());
    }
}
