//! A folder of YAML, as its readers see it: real files, real inotify.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that stops at the line at fault says most"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use model::cluster::Snapshot;
use model::name::NamespacedName;
use model::watch::{self, Watch};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

/// A watched folder and the newest snapshot of it.
struct Folder {
    dir: TempDir,
    watch: Watch,
    seen: Snapshot,
    _tasks: JoinSet<()>,
}

impl Folder {
    async fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self::watch(dir).await
    }

    async fn watch(dir: TempDir) -> Self {
        let mut watch = watch::files(dir.path(), "here").unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(std::mem::replace(&mut watch.task, Box::pin(async {})));
        let first = timeout(DEADLINE, watch.feed.next()).await.expect("in sync").unwrap();
        Self { dir, watch, seen: first.snapshot, _tasks: tasks }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Waits until the snapshot is as said; every snapshot on the way must satisfy `always`.
    async fn until(
        &mut self,
        done: impl Fn(&Snapshot) -> bool,
        always: impl Fn(&Snapshot) -> bool,
    ) {
        let wait = async {
            while !done(&self.seen) {
                self.seen = self.watch.feed.next().await.expect("the feed goes on").snapshot;
                assert!(always(&self.seen), "on the way: {:#?}", self.seen);
            }
        };
        if timeout(DEADLINE, wait).await.is_err() {
            panic!("not within {DEADLINE:?}; last seen: {:#?}", self.seen);
        }
    }

    async fn until_ips(&mut self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(name, ip)| ((*name).to_owned(), (*ip).to_owned())).collect();
        self.until(|seen| ips(seen) == expected, |_| true).await;
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn slice(name: &str, service: &str, ip: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  \
         namespace: shop\n  labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\n\
         ports: [{{port: 8080}}]\nendpoints: [{{addresses: [{ip}], nodeName: here}}]\n"
    )
}

fn ips(seen: &Snapshot) -> BTreeMap<String, String> {
    seen.services
        .iter()
        .filter_map(|(name, state)| Some((name.name.to_string(), state.service.as_ref()?)))
        .map(|(name, service)| (name, service.cluster_ips.first().unwrap().to_string()))
        .collect()
}

fn problems(seen: &Snapshot) -> Vec<String> {
    seen.problems.iter().flat_map(|(_, list)| list.iter().map(ToString::to_string)).collect()
}

fn endpoints(seen: &Snapshot, service: &str) -> Vec<String> {
    let state = &seen.services[&NamespacedName::new("shop", service)];
    let ports = state.endpoints.ports.values();
    ports.flat_map(|list| list.iter().map(|endpoint| endpoint.address.to_string())).collect()
}

#[tokio::test]
async fn an_empty_folder_is_in_sync_with_a_node_of_the_configured_name() {
    let folder = Folder::new(&[]).await;
    assert_eq!(&*folder.seen.node.as_ref().unwrap().name, "here");
    assert!(folder.seen.services.is_empty());
    assert!(folder.watch.health.borrow().in_sync);
}

#[tokio::test]
async fn a_missing_folder_is_refused() {
    let error = watch::files(Path::new("/nonexistent/objects"), "here").unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot watch the folder /nonexistent/objects; give a directory that this process may read"
    );
}

#[tokio::test]
async fn files_are_created_edited_and_deleted() {
    let both = format!("{}---\n{}", service("web", "10.0.0.1"), slice("web-1", "web", "10.1.0.1"));
    let mut folder = Folder::new(&[("a.yaml", &both)]).await;
    folder.until_ips(&[("web", "10.0.0.1")]).await;
    assert_eq!(endpoints(&folder.seen, "web"), ["10.1.0.1:8080"]);
    assert!(folder.seen.namespaces.contains("shop"));

    folder.write("b.yml", &service("cart", "10.0.0.2"));
    folder.until_ips(&[("web", "10.0.0.1"), ("cart", "10.0.0.2")]).await;

    folder.write("a.yaml", &both.replace("10.0.0.1", "10.0.0.3"));
    folder.until_ips(&[("web", "10.0.0.3"), ("cart", "10.0.0.2")]).await;

    fs::remove_file(folder.path("a.yaml")).unwrap();
    folder.until_ips(&[("cart", "10.0.0.2")]).await;
    fs::remove_file(folder.path("b.yml")).unwrap();
    folder
        .until(
            |seen| *seen == Snapshot { node: seen.node.clone(), ..Snapshot::default() },
            |_| true,
        )
        .await;
}

#[tokio::test]
async fn an_editor_that_moves_the_old_file_away_takes_nothing_down() {
    let mut folder = Folder::new(&[("a.yaml", &service("web", "10.0.0.1"))]).await;
    for round in 2..20 {
        let ip = format!("10.0.0.{round}");
        fs::rename(folder.path("a.yaml"), folder.path("a.yaml~")).unwrap();
        folder.write("a.yaml", &service("web", &ip));
        fs::remove_file(folder.path("a.yaml~")).unwrap();
        let there = |seen: &Snapshot| ips(seen).contains_key("web");
        folder.until(|seen| ips(seen)["web"] == ip, there).await;

        let ip = format!("10.0.1.{round}");
        fs::write(folder.path(".a.yaml.tmp"), service("web", &ip)).unwrap();
        fs::rename(folder.path(".a.yaml.tmp"), folder.path("a.yaml")).unwrap();
        folder.until(|seen| ips(seen)["web"] == ip, there).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_in_quick_succession_take_nothing_down() {
    let mut folder = Folder::new(&[("a.yaml", &service("web", "10.0.0.1"))]).await;
    let (path, old) = (folder.path("a.yaml"), folder.path("a.yaml~"));
    let editor = tokio::task::spawn_blocking(move || {
        for round in 0..500 {
            fs::rename(&path, &old).unwrap();
            fs::write(&path, service("web", &format!("10.1.{}.{}", round >> 8, round & 255)))
                .unwrap();
        }
    });
    let last = |seen: &Snapshot| ips(seen)["web"] == "10.1.1.243";
    folder.until(last, |seen| ips(seen).contains_key("web")).await;
    editor.await.unwrap();
}

/// Others may replace files while a process starts: the first list has every object that is there all
/// the time.
#[test]
fn what_is_replaced_while_the_folder_is_first_read_is_not_left_out() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.yaml"), service("web", "10.96.0.1")).unwrap();
    let (slices, fresh) = (dir.path().join("slices.yaml"), dir.path().join(".slices.new"));
    // Large enough to be met while it is read.
    let text: String =
        (0..100).map(|n| slice(&format!("web-{n}"), "web", "10.244.1.2") + "---\n").collect();
    let write = |text: &str| {
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, &slices).unwrap();
    };
    write(&text);
    let ending = AtomicBool::new(false);
    let replace = || {
        while !ending.load(Ordering::Relaxed) {
            write(&text);
        }
    };
    let listed = std::thread::scope(|scope| {
        scope.spawn(replace);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listed: Vec<_> = (0..2)
            .map(|_| {
                runtime.block_on(async {
                    let mut watch = watch::files(dir.path(), "here").unwrap();
                    let mut tasks = JoinSet::new();
                    tasks.spawn(std::mem::replace(&mut watch.task, Box::pin(async {})));
                    let first = timeout(DEADLINE, watch.feed.next()).await.expect("in sync");
                    endpoints(&first.unwrap().snapshot, "web")
                })
            })
            .collect();
        ending.store(true, Ordering::Relaxed);
        listed
    });
    for endpoints in listed {
        assert_eq!(endpoints, ["10.244.1.2:8080"]);
    }
}

#[tokio::test]
async fn a_file_is_not_read_while_it_is_being_written() {
    use std::io::Write;
    let mut folder = Folder::new(&[("a.yaml", &service("web", "10.0.0.1"))]).await;
    // Truncated, then written in two parts: neither nothing nor the first part is ever seen.
    let mut open = fs::File::create(folder.path("a.yaml")).unwrap();
    open.write_all(service("web", "10.0.0.2").as_bytes()).unwrap();
    folder.write("b.yaml", &service("other", "10.0.0.9"));
    folder
        .until(|seen| ips(seen).contains_key("other"), |seen| ips(seen)["web"] == "10.0.0.1")
        .await;
    open.write_all(format!("---\n{}", service("cart", "10.0.0.3")).as_bytes()).unwrap();
    drop(open);
    let done = |seen: &Snapshot| ips(seen).contains_key("cart");
    folder.until(done, |seen| done(seen) || ips(seen)["web"] == "10.0.0.1").await;
    assert_eq!(ips(&folder.seen)["web"], "10.0.0.2");
}

#[tokio::test]
async fn a_config_map_switches_all_files_by_one_link() {
    let dir = tempfile::tempdir().unwrap();
    version(dir.path(), 1);
    version(dir.path(), 2);
    switch(dir.path(), 1);
    symlink("..data/web.yaml", dir.path().join("web.yaml")).unwrap();
    symlink("..data/cart.yaml", dir.path().join("cart.yaml")).unwrap();
    let path = dir.path().to_owned();
    let mut folder = Folder::watch(dir).await;
    folder.until_ips(&[("web", "10.0.0.1"), ("cart", "10.0.1.1")]).await;
    switch(&path, 2);
    folder.until_ips(&[("web", "10.0.0.2"), ("cart", "10.0.1.2")]).await;
}

fn version(dir: &Path, n: u8) {
    let path = dir.join(format!("..v{n}"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("web.yaml"), service("web", &format!("10.0.0.{n}"))).unwrap();
    fs::write(path.join("cart.yaml"), service("cart", &format!("10.0.1.{n}"))).unwrap();
}

fn switch(dir: &Path, n: u8) {
    symlink(format!("..v{n}"), dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

#[tokio::test]
async fn a_broken_document_keeps_what_it_held_and_its_neighbours_change() {
    let good = format!("{}---\n{}", service("web", "10.0.0.1"), service("cart", "10.0.0.2"));
    let mut folder = Folder::new(&[("a.yaml", &good)]).await;
    let broken = format!("kind: [Service\n---\n{}", service("cart", "10.0.0.3"));
    folder.write("a.yaml", &broken);
    folder.until_ips(&[("web", "10.0.0.1"), ("cart", "10.0.0.3")]).await;
    let told = problems(&folder.seen);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("a.yaml: document 1: line "), "{told:#?}");
    assert_eq!(told[1], "a.yaml: file: what it held before stays as it was: Service shop/web");

    // A part of the wrong type breaks one object, which is named.
    let wrong = service("web", "10.0.0.4").replace("port: 80", "port: eighty");
    folder.write("a.yaml", &format!("{wrong}---\n{}", service("cart", "10.0.0.5")));
    folder.until_ips(&[("web", "10.0.0.1"), ("cart", "10.0.0.5")]).await;
    let told = problems(&folder.seen);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("a.yaml: Service shop/web, document 1: line 4"), "{told:#?}");
    assert_eq!(told[1], "a.yaml: file: what it held before stays as it was: Service shop/web");

    // So does a value that leaves no Service over.
    let wrong = service("web", "10.0.0.4").replace("spec: {", "spec: {type: Gateway, ");
    folder.write("a.yaml", &format!("{wrong}---\n{}", service("cart", "10.0.0.6")));
    folder.until_ips(&[("web", "10.0.0.1"), ("cart", "10.0.0.6")]).await;
    assert_eq!(problems(&folder.seen).len(), 2);

    folder.write("a.yaml", &service("cart", "10.0.0.7"));
    folder.until_ips(&[("cart", "10.0.0.7")]).await;
    assert_eq!(problems(&folder.seen), [""; 0]);
}

#[tokio::test]
async fn the_first_file_wins_and_the_other_takes_over() {
    let mut folder = Folder::new(&[
        ("a.yaml", &service("web", "10.0.0.1")),
        ("b.yaml", &service("web", "10.0.0.2")),
    ])
    .await;
    folder.until_ips(&[("web", "10.0.0.1")]).await;
    let also = "b.yaml: Service shop/web: also in a.yaml, which counts; remove one of the two";
    assert_eq!(problems(&folder.seen), [also]);
    fs::remove_file(folder.path("a.yaml")).unwrap();
    folder.until(|seen| ips(seen)["web"] == "10.0.0.2", |seen| ips(seen).contains_key("web")).await;
    folder.until(|seen| problems(seen).is_empty(), |_| true).await;
    folder.write("a.yaml", &service("web", "10.0.0.3"));
    folder.until_ips(&[("web", "10.0.0.3")]).await;
    assert_eq!(problems(&folder.seen), [also]);
}

#[tokio::test]
async fn endpoints_count_until_there_is_a_slice() {
    let text = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web, namespace: shop}\nsubsets:\n\
                - addresses: [{ip: 10.1.0.1}]\n  ports: [{port: 81}]\n";
    let mut folder =
        Folder::new(&[("a.yaml", &service("web", "10.0.0.1")), ("b.yaml", text)]).await;
    assert_eq!(endpoints(&folder.seen, "web"), ["10.1.0.1:81"]);
    folder.write("c.yaml", &slice("web-1", "web", "10.1.0.2"));
    folder.until(|seen| endpoints(seen, "web") == ["10.1.0.2:8080"], |_| true).await;
    fs::remove_file(folder.path("c.yaml")).unwrap();
    folder.until(|seen| endpoints(seen, "web") == ["10.1.0.1:81"], |_| true).await;
}

#[tokio::test]
async fn ending_the_task_ends_the_feed() {
    let dir = tempfile::tempdir().unwrap();
    let Watch { mut feed, task, .. } = watch::files(dir.path(), "here").unwrap();
    drop(task);
    assert!(timeout(DEADLINE, feed.next()).await.unwrap().is_none());
}
