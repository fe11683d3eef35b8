//! One table, without a kernel.

use model::name::NamespacedName;

use super::*;
use crate::plan::{Endpoint, EndpointSet, FrontendKind, Routes};

const NOW: Duration = Duration::from_secs(100);

fn key() -> FrontendKey {
    let at = At::Address("10.96.0.10".parse().unwrap());
    FrontendKey { at, port: 80, protocol: Protocol::Tcp }
}

fn frontend(endpoints: &[&str], affinity: Option<Duration>) -> Frontend {
    let endpoint =
        |address: &&str| Endpoint { address: address.parse().unwrap(), weight: 1, local: false };
    let target = match EndpointSet::new(endpoints.iter().map(endpoint).collect()) {
        Some(set) => Target::Endpoints(set),
        None => Target::Reject,
    };
    Frontend {
        service: ServicePortName {
            service: NamespacedName::new("shop", "web"),
            port: "".into(),
            protocol: Protocol::Tcp,
        },
        kind: FrontendKind::ClusterIp,
        routes: Routes::same(&Route::new(target, Masquerade::Hairpin)),
        source_ranges: None,
        affinity,
        ends_connections: false,
        serving: [].into(),
    }
}

fn empty() -> Table {
    Table::adopt(Family::V4, Held::default(), HashMap::new())
}

/// A table with one Service, whose first transaction is done.
fn with_web(endpoints: &[&str], affinity: Option<Duration>) -> Table {
    let mut table = empty();
    assert!(table.put(&key(), &frontend(endpoints, affinity)).unwrap());
    table.render(NOW);
    table.commit(NOW);
    table
}

fn elements(text: &str) -> String {
    let lines = text.lines().filter(|line| line.contains(" element "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_changed_set_is_another_set_and_the_old_one_goes_later() {
    let mut table = with_web(&["10.0.0.1:80", "10.0.0.2:80"], None);
    table.put(&key(), &frontend(&["10.0.0.1:80", "10.0.0.3:80"], None)).unwrap();
    expect_test::expect![[r"
        delete element ip fairlead frontends-node { 10.96.0.10 . tcp . 80 }
        delete element ip fairlead frontends-outside { 10.96.0.10 . tcp . 80 }
        delete element ip fairlead frontends-pod { 10.96.0.10 . tcp . 80 }
        add element ip fairlead endpoints { 0x2000 . 0 : 0x1, 0x2000 . 1 : 0x3 }
        add element ip fairlead frontends-node { 10.96.0.10 . tcp . 80 : 0x2003 }
        add element ip fairlead frontends-outside { 10.96.0.10 . tcp . 80 : 0x2003 }
        add element ip fairlead frontends-pod { 10.96.0.10 . tcp . 80 : 0x2003 }
        add element ip fairlead hairpin { 10.0.0.3 . 10.0.0.3 }
        add element ip fairlead targets { 0x3 : 10.0.0.3 . 80 }"]]
    .assert_eq(&elements(&table.render(NOW)));
    table.commit(NOW);

    table.remove(&key());
    let early = table.render(NOW + REST / 2);
    assert!(!early.contains("0x1000"), "{early}");
    let late = table.render(NOW + REST);
    assert!(late.contains("delete element ip fairlead endpoints { 0x1000 . 0, 0x1000 . 1 }"));
    assert!(late.contains("delete element ip fairlead hairpin { 10.0.0.2 . 10.0.0.2 }"), "{late}");
    assert!(!late.contains("10.0.0.1"), "still in the set that goes last: {late}");
}

#[test]
fn what_is_held_already_changes_nothing_also_after_a_restart() {
    for affinity in [None, Some(Duration::from_secs(30))] {
        let wanted = frontend(&["10.0.0.1:80", "10.0.0.2:80"], affinity);
        let mut table = with_web(&["10.0.0.1:80", "10.0.0.2:80"], affinity);
        assert!(!table.put(&key(), &wanted).unwrap());
        let mut restarted = Table::adopt(Family::V4, table.held.clone(), HashMap::new());
        assert_eq!(restarted.frontends().collect::<Vec<_>>(), [key()]);
        assert!(!restarted.put(&key(), &wanted).unwrap());
        assert_eq!(restarted.render(NOW), "");
    }
}

#[test]
fn what_clients_remember_outlives_their_set() {
    let affinity = Some(Duration::from_secs(30));
    let mut table = with_web(&["10.0.0.1:80", "10.0.0.2:80"], affinity);
    let held = table.held.clone();
    let mut restarted = Table::adopt(Family::V4, held, HashMap::new());
    for table in [&mut table, &mut restarted] {
        table.put(&key(), &frontend(&["10.0.0.2:80"], affinity)).unwrap();
        let text = table.render(NOW);
        // The same Service port, another set; the endpoint keeps its number.
        assert!(
            text.contains("add element ip fairlead members { 0x80001000 . 0x2 : 0x2 }"),
            "{text}"
        );
        assert!(text.contains("stick-1-30s-1"), "{text}");
    }
}

#[test]
fn a_transaction_that_failed_is_as_if_it_had_not_been_tried() {
    let mut table = with_web(&["10.0.0.1:80"], None);
    let next = frontend(&["10.0.0.2:80", "10.0.0.3:80"], None);
    table.put(&key(), &next).unwrap();
    table.revert(None);
    assert!(!table.put(&key(), &frontend(&["10.0.0.1:80"], None)).unwrap());
    table.put(&key(), &next).unwrap();
    assert!(table.render(NOW).contains("pick-2"), "its chain is made again");
}

#[test]
fn half_a_set_that_is_found_is_swept() {
    let stray = Key::Endpoint(0x7000, 1);
    let held = Held::from_iter([(stray, Value::Number(9))]);
    let mut table = Table::adopt(Family::V4, held, HashMap::new());
    table.put(&key(), &frontend(&["10.0.0.1:80"], None)).unwrap();
    let text = table.render(NOW);
    assert!(text.contains("delete element ip fairlead endpoints { 0x7000 . 1 }"), "{text}");
}

#[test]
fn a_change_costs_the_same_in_any_table() {
    let cost = |n_services: u8| {
        let mut table = empty();
        for n in 0..n_services {
            let at = At::Address(IpAddr::from([10, 96, 1, n]));
            let endpoints = [format!("10.1.{n}.1:80"), format!("10.1.{n}.2:80")];
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            table.put(&FrontendKey { at, ..key() }, &frontend(&endpoints, None)).unwrap();
        }
        table.put(&key(), &frontend(&["10.0.0.1:80", "10.0.0.2:80"], None)).unwrap();
        table.render(NOW);
        table.commit(NOW);
        table.put(&key(), &frontend(&["10.0.0.1:80", "10.0.0.3:80"], None)).unwrap();
        table.render(NOW).matches(" : ").count()
    };
    assert_eq!(cost(1), cost(250));
}
