//! A thousand malformed and contradictory objects among good ones: each is told of once, with its
//! file and a reason, and its neighbours are served.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that stops at the line at fault says most"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use model::cluster::Snapshot;
use model::name::NamespacedName;
use model::watch;
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);
const N_BAD: usize = 1000;
const EACH_FILE: usize = 50;

/// Documents with one fault each; `NAME` is the object's name. And whether any of the object can
/// still be taken.
const FAULTS: &[(&str, bool)] = &[
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 0}]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 65536}]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{port: -1}]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 99999999999999}]}",
        false,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{protocol: TCP}]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: 80}",
        false,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80, protocol: HTTP}]}",
        true,
    ),
    ("kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.256}", true),
    ("kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {ports: [{port: 80}]}", true),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIPs: [10.0.0.1, 10.0.0.2]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ipFamilies: [IPv6]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, type: Huge}",
        false,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, sessionAffinity: Cookie}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, externalIPs: [ABSURD]}",
        true,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME, namespace: ABSURD}\nspec: {clusterIP: 10.0.0.1}",
        false,
    ),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: NAME}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 1, name: a}, {port: 2, name: a}]}",
        true,
    ),
    (
        "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1\nmetadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}\naddressType: IPv6\nports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1]}]",
        true,
    ),
    (
        "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1\nmetadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}\naddressType: IPv4\nports: [{port: 0}]\nendpoints: [{addresses: [10.1.0.1]}]",
        true,
    ),
    (
        "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1\nmetadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}\nports: [{port: 80}]",
        false,
    ),
    (
        "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1\nmetadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}\naddressType: IPv4\nendpoints: {addresses: 10.1.0.1}",
        false,
    ),
    (
        "kind: Endpoints\napiVersion: v1\nmetadata: {name: NAME}\nsubsets: [{addresses: [{ip: x}], ports: [{port: 80}]}]",
        false,
    ),
    ("kind: Node\napiVersion: v1\nmetadata: {name: NAME}\nspec: {podCIDRs: [10.0.0.0/99]}", true),
    (
        "kind: Service\napiVersion: v1\nmetadata: {name: good-0, namespace: shop, labels: {is: NAME}}\nspec: {clusterIP: 10.0.0.1}",
        true,
    ),
    ("kind: Service\n  # NAME\n apiVersion: [", false),
    ("NAME", false),
    ("kind: Service\nmetadata: {name: NAME}", false),
    ("- NAME", false),
];

fn bad(n: usize) -> String {
    let text = FAULTS[n % FAULTS.len()].0;
    text.replace("NAME", &format!("bad-{n}")).replace("ABSURD", &"x".repeat(5000))
}

fn good(n: usize) -> String {
    format!(
        "kind: Service\napiVersion: v1\nmetadata: {{name: good-{n}, namespace: shop}}\n\
         spec: {{clusterIP: 10.9.{}.{}}}\n",
        n >> 8,
        n & 255
    )
}

async fn load(files: &[(String, String)]) -> Snapshot {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    first_of(dir.path()).await
}

async fn first_of(dir: &Path) -> Snapshot {
    let mut watch = watch::files(dir, "here").unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(watch.task);
    timeout(DEADLINE, watch.feed.next()).await.expect("in sync").unwrap().snapshot
}

#[tokio::test]
async fn a_thousand_bad_objects_are_told_of_once_and_harm_nobody() {
    // A good one before and behind each bad one; `good-0` is the one that others contradict.
    let mut files = vec![("0.yaml".to_owned(), good(0))];
    for (file, numbers) in (0..N_BAD).collect::<Vec<_>>().chunks(EACH_FILE).enumerate() {
        let documents = numbers.iter().map(|&n| format!("{}---\n{}\n---\n", good(n + 1), bad(n)));
        files.push((format!("bad-file-{file:02}.yaml"), documents.collect()));
    }
    let seen = load(&files).await;
    for n in 0..=N_BAD {
        let name = NamespacedName::new("shop", format!("good-{n}"));
        let service = seen.services[&name].service.as_ref().unwrap();
        let ip =
            if n == 0 { "10.9.0.0".to_owned() } else { format!("10.9.{}.{}", n >> 8, n & 255) };
        assert_eq!(service.cluster_ips[0].to_string(), ip, "good-{n}");
    }
    for (file, numbers) in (0..N_BAD).collect::<Vec<_>>().chunks(EACH_FILE).enumerate() {
        let file = format!("bad-file-{file:02}.yaml");
        let problems: Vec<_> = seen.problems[&*file].iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), numbers.len(), "one each: {problems:#?}");
        for problem in &problems {
            assert!(problem.starts_with(&format!("{file}: ")), "{problem}");
            assert!(problem.len() < 400, "no absurd values in {problem}");
        }
        for (idx, n) in numbers.iter().enumerate() {
            let text = FAULTS[n % FAULTS.len()].0;
            // Where the document gives no name its place does; duplicates bear the first's name.
            let by_place = format!("{file}: document {}:", 2 * idx + 2);
            let by_name = if text.contains("good-0") { "good-0" } else { &format!("bad-{n}") };
            let is_told = |problem: &&String| {
                problem.starts_with(&by_place)
                    || problem.split([':', ',', ' ', '/']).any(|word| word == by_name)
            };
            assert!(problems.iter().any(|problem| is_told(&problem)), "{text}\n{problems:#?}");
        }
    }
    for (n, (text, is_taken)) in FAULTS.iter().enumerate() {
        let name = NamespacedName::new("default", format!("bad-{n}"));
        if text.contains("name: NAME") && text.starts_with("kind: Service") {
            assert_eq!(seen.services.contains_key(&name), *is_taken, "{text}");
        }
    }
}

#[tokio::test]
async fn absurd_sizes_are_refused_or_read_in_time() {
    let deep = format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_json = format!("{{\"kind\": {}", "[".repeat(100_000));
    let indented: String = (0..2_000).map(|n| format!("{:n$}a:\n", "")).collect();
    let keys: String = (0..50_000).map(|n| format!("k{n}: v\n")).collect();
    let bytes = "kind: \u{feff}\u{85}\u{2028}é\n";
    let texts =
        [&deep, &deep_json, &indented, &keys, bytes, "---\n---\n---\n", "", "\0", "&a [*a]"];
    let mut files: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (format!("absurd-{n}.yaml"), (*text).to_owned()))
        .collect();
    files.push(("good.yaml".to_owned(), good(1)));
    let seen = load(&files).await;
    assert_eq!(seen.services.len(), 1);
    let blank = |n: &usize| texts[*n].trim_matches(['-', '\n']).is_empty();
    for n in (0..texts.len()).filter(|n| !blank(n)) {
        assert_eq!(seen.problems[&*format!("absurd-{n}.yaml")].len(), 1, "absurd-{n}");
    }
}

/// A file of good and bad documents cut off anywhere, behind any bytes.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let cut = (0..FAULTS.len(), any::<prop::sample::Index>());
    (prop::collection::vec(any::<u8>(), 0..64), prop::collection::vec(cut, 1..8)).prop_map(
        |(mut bytes, cuts)| {
            for (fault, cut) in cuts {
                let text = format!("{}\n---\n{}\n---\n", bad(fault), good(fault + 1));
                bytes.extend_from_slice(&text.as_bytes()[..cut.index(text.len())]);
            }
            bytes
        },
    )
}

proptest! {
    // Each case takes one of the 128 inotify instances that a user has.
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever stands in files, their neighbour is served and nothing panics.
    #[test]
    fn any_file_is_survived(files in prop::collection::vec(noise(), 1..32)) {
        let dir = tempfile::tempdir().unwrap();
        for (n, bytes) in files.iter().enumerate() {
            fs::write(dir.path().join(format!("noise-{n}.yaml")), bytes).unwrap();
        }
        fs::write(dir.path().join("good.yaml"), good(0)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(first_of(dir.path()));
        prop_assert!(seen.services.contains_key(&NamespacedName::new("shop", "good-0")));
    }
}
