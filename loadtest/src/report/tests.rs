//! A report from rounds that are known, as text and as a page.

use expect_test::expect;

use super::*;
use crate::change::Change;
use crate::clock::{MILLISECOND, SECOND};
use crate::fairness::Verdict;
use crate::kind::{Kind, Load};
use crate::tally::{Hits, Tally};

fn arm(name: &str, role: Role, weights: &[(&str, u32)]) -> Arm {
    let load = Load {
        kind: Kind::Tcp,
        targets: Vec::new(),
        concurrency: 1,
        rate: None,
        payload: 0,
        requests_per_connection: 1,
        sources: Vec::new(),
        timeout: SECOND,
        name: String::new(),
        path: String::new(),
    };
    let weights = weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
    Arm { name: name.to_owned(), role, hand: 0, load, servers: vec![1], weights }
}

/// Rounds of 1,000 requests in 50 ms or a little more, each after `base` or twice that.
fn rounds(base: u64, hits: &[(&str, u64)]) -> Vec<Round> {
    (0..100)
        .map(|idx| {
            let begin = SECOND + idx * 100 * MILLISECOND;
            let endpoints = hits
                .iter()
                .map(|(name, n)| ((*name).to_owned(), Hits { n_connections: *n, n_requests: *n }))
                .collect();
            let tally = Tally {
                begin,
                end: begin + 50 * base * 1000 + (idx % 5) * 100_000,
                n_answered: 1000,
                latencies: Sparse(vec![(base * 1000, 980), (base * 2000, 19), (2_000_000, 1)]),
                endpoints,
                cpu: 9_000_000,
                ..Tally::default()
            };
            Round { tally, server_cpu: 8_000_000, softirq: 1_000_000 }
        })
        .collect()
}

fn report() -> Report {
    let weights = [("web-1", 1), ("web-2", 1)];
    let tested = [
        arm("direct", Role::Baseline, &[]),
        arm("again", Role::Again, &[]),
        arm("ebpf", Role::Candidate, &weights),
        arm("first", Role::Candidate, &weights),
    ];
    let mut failing = rounds(1250, &[("web-1", 1000)]);
    failing[3].tally.errors.insert("connection refused".to_owned(), 7);
    let measured = [
        rounds(1000, &[]),
        rounds(1000, &[]),
        rounds(1010, &[("web-1", 499), ("web-2", 501)]),
        failing,
    ];
    let change = |millis, is_added| Change {
        at: millis * MILLISECOND,
        endpoint: "web-2".to_owned(),
        is_added,
    };
    Report {
        target: "default/hello:80 <b>".to_owned(),
        command: "fairlead loadtest".to_owned(),
        version: "0.1.0".to_owned(),
        started: "2026-01-01T00:00:00Z".to_owned(),
        machine: "Linux 6.18, 2 processors".to_owned(),
        settings: vec![("requests".to_owned(), "tcp".to_owned())],
        arms: arms(&tested, &measured),
        changes: vec![
            Effect { change: change(1500, false), took: Some(700_000), share: None },
            Effect { change: change(1900, true), took: Some(1_200_000), share: Some(0.49) },
        ],
        marks: vec![(0.5, "web-2 removed".to_owned()), (0.9, "web-2 added".to_owned())],
        doubts: vec!["the wall clock jumped".to_owned()],
    }
}

#[test]
fn arms_are_compared_with_the_baseline() {
    let Report { arms, .. } = report();
    assert_eq!(arms[0].ratio, None);
    let again = arms[1].ratio.unwrap().rate;
    assert_eq!((again.value, again.low, again.high), (1.0, 1.0, 1.0));
    let ebpf = arms[2].ratio.unwrap();
    assert!((ebpf.rate.value - 0.990).abs() < 0.001, "{ebpf:?}");
    assert!((ebpf.p50.value - 1.01).abs() < 0.001, "{ebpf:?}");
    assert_eq!(arms[2].fairness.unwrap().verdict, Verdict::Fair);
    assert_eq!(arms[3].fairness.unwrap().verdict, Verdict::Unfair);
    assert_eq!(arms[3].spread.len(), 2, "who got nothing is there as well");
}

#[test]
fn a_curve_goes_as_far_as_the_numbers_do() {
    let latencies: Latencies = (1..=1000).collect();
    let last = curve(&latencies).into_iter().map(|(q, _)| q).rfind(|q| *q < 1.0);
    assert_eq!(last, Some(0.999));
}

#[test]
fn the_table_has_80_columns() {
    let text = table::render(&report());
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    expect![[r"
                       rate/s  rate to direct [95 %]      p50      p99    p99.9  failed
        direct         19,920                         1.00 ms  2.00 ms  2.00 ms       0
        again          19,920   1.000 [1.000, 1.000]  1.00 ms  2.00 ms  2.00 ms       0
        ebpf           19,724   0.990 [0.990, 0.990]  1.01 ms  2.02 ms  2.02 ms       0
        first          15,949   0.801 [0.801, 0.801]  1.25 ms  2.50 ms  2.50 ms       7

        ebpf         latency     p50 × 1.010 [1.010, 1.010], p99 × 1.010 [1.010, 1.010]
                     CPU each    client 9.00 µs, server 8.00 µs, softirq 1.00 µs
                     spread      web-1 49.9 %, web-2 50.1 %
                                 as intended (chi-square 0.4 of 1, p = 0.53)

        first        latency     p50 × 1.250 [1.250, 1.250], p99 × 1.250 [1.250, 1.250]
                     CPU each    client 9.00 µs, server 8.00 µs, softirq 1.00 µs
                     spread      web-1 100.0 %, web-2 0.0 %
                                 UNFAIR (chi-square 100000 of 1, p < 0.0001)
                     failed      7 × connection refused

        1 endpoints removed: no request after 700 µs (median), 700 µs at most
        1 endpoints added: one within 1.20 ms (median), 1.20 ms at most

        Note: the wall clock jumped.
    "]]
    .assert_eq(&text);
}

#[test]
fn the_page_asks_nobody_for_anything() {
    let page = html::render(&report());
    for outside in ["http:", "https:", "src=", "@import", "url(", "<script", "<b>"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf"));
    for title in
        ["Latency by percentile", "Latency over time", "Spread", "Compared", "came and went"]
    {
        assert!(page.contains(title), "{title}");
    }
    // A drawing for a desk and one for a phone, of each of five plots.
    assert_eq!(page.matches("<svg").count(), 10);
    assert_eq!(page.matches("class=mark").count(), 4);
}

#[test]
fn a_report_of_nothing_is_a_page_as_well() {
    let empty = Report { arms: Vec::new(), changes: Vec::new(), ..report() };
    let page = html::render(&empty);
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    assert!(table::render(&empty).contains("wall clock"));
}

#[test]
fn json_is_read_back_as_it_was() {
    let report = report();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap().arms.len(), report.arms.len());
}

#[test]
fn numbers_are_short() {
    assert_eq!(
        [512.0, 9_996.0, 41_230.0, 1.5e9].map(time),
        ["512 ns", "10.0 µs", "41.2 µs", "1.50 s"]
    );
    assert_eq!([0.0, 999.4, 1_234_567.0].map(count), ["0", "999", "1,234,567"]);
}
