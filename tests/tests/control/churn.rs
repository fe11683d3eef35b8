//! kube-rs against objects that change without pause: no event missed, none twice, in order.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tests::relay::Relay;

use crate::companion::{Companion, config_map, eventually, get, merge, post, revision};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: u32 = 25;
/// Writes a second, of all writers together.
const RATE: u32 = 500;
/// The last object that is made: who sees it has seen all.
const END: &str = "the-end";

#[tokio::test(flavor = "multi_thread")]
async fn five_seconds_of_churn_are_followed_without_a_gap() {
    follow_churn(5).await;
}

mod long {
    #[tokio::test(flavor = "multi_thread")]
    async fn a_minute_of_churn_is_followed_without_a_gap() {
        let (n_writes, took) = super::follow_churn(60).await;
        // Half the rate, on a machine that does other things as well, is still churn.
        assert!(took.as_secs() < 120, "{n_writes} writes took {took:?}");
    }
}

/// Gives the number of writes, and how long they took.
async fn follow_churn(seconds: u32) -> (u32, Duration) {
    let companion = Companion::start(&["--no-controllers"]).await;
    let client = companion.client().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let from = revision(&get(&client, MAPS).await.unwrap());
    let watched = tokio::spawn(watch_to_the_end(api.clone()));
    let reconciled: Held = Arc::default();
    let controller = tokio::spawn(reconcile(api.clone(), Arc::clone(&reconciled)));
    let (reader, writer) = reflector::store();
    let events = watcher(api, watcher::Config::default());
    let stream = reflector(writer, events).default_backoff().touched_objects();
    let reflecting = tokio::spawn(stream.for_each(|_| std::future::ready(())));
    reader.wait_until_ready().await.unwrap();

    let started = Instant::now();
    let pace = Duration::from_secs(1) * WRITERS / RATE;
    let n_writes = write_all(&client, seconds * RATE / WRITERS, pace).await;
    let took = started.elapsed();
    let end = revision(&post(&client, MAPS, &config_map(END)).await.unwrap());

    // Nothing else was written: the store's revisions are those of the writes, all of them.
    assert_eq!(end - from, u64::from(n_writes) + 1);
    let seen = tokio::time::timeout(Duration::from_secs(30), watched).await.unwrap().unwrap();
    let expected: Vec<u64> = (from + 1..=end).collect();
    assert!(seen == expected, "{} events of {}", seen.len(), expected.len());
    let wanted = names(&get(&client, MAPS).await.unwrap());
    eventually("the reflector holds what the server holds", || async {
        let held = reader.state().iter().map(|map| (map.name_any(), version(map))).collect();
        (wanted == held).then_some(())
    })
    .await;
    eventually("the controller has seen the last version of each", || async {
        let reconciled = reconciled.lock().unwrap();
        wanted.iter().all(|(name, last)| reconciled.get(name) == Some(last)).then_some(())
    })
    .await;
    controller.abort();
    reflecting.abort();
    (n_writes, took)
}

/// Names and their last versions.
type Held = Arc<Mutex<BTreeMap<String, String>>>;

fn version(map: &ConfigMap) -> String {
    map.metadata.resource_version.clone().unwrap()
}

/// The revisions of all events, in the order in which they came. The watch ends every few
/// seconds and is resumed.
async fn watch_to_the_end(api: Api<ConfigMap>) -> Vec<u64> {
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default().timeout(2)));
    let mut revisions = Vec::new();
    let mut lists = 0;
    loop {
        match events.next().await.unwrap().unwrap() {
            Event::Init => lists += 1,
            Event::InitApply(_) | Event::InitDone => {}
            Event::Apply(map) | Event::Delete(map) => {
                revisions.push(version(&map).parse().unwrap());
                if map.name_any() == END {
                    assert_eq!(lists, 1, "a resumed watch lists nothing anew");
                    return revisions;
                }
            }
        }
    }
}

async fn reconcile(api: Api<ConfigMap>, seen: Held) {
    let note = |map: Arc<ConfigMap>, seen: Arc<Held>| async move {
        seen.lock().unwrap().insert(map.name_any(), version(&map));
        Ok::<_, Infallible>(Action::await_change())
    };
    Controller::new(api, watcher::Config::default())
        .run(note, |_, _, _| Action::await_change(), Arc::new(seen))
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn write_all(client: &Client, each: u32, pace: Duration) -> u32 {
    let begin = |writer| tokio::spawn(write(client.clone(), writer, each, pace));
    let mut n_writes = 0;
    for writer in (0..WRITERS).map(begin).collect::<Vec<_>>() {
        n_writes += writer.await.unwrap();
    }
    n_writes
}

/// Makes, changes and deletes objects at an even rate; gives the number of writes.
async fn write(client: Client, writer: u32, n: u32, pace: Duration) -> u32 {
    let mut tick = tokio::time::interval(pace);
    for i in 0..n {
        tick.tick().await;
        let name = format!("w{writer}-{}", i / 4);
        let path = format!("{MAPS}/{name}");
        match i % 4 {
            0 => post(&client, MAPS, &config_map(&name)).await.unwrap(),
            1 | 2 => merge(&client, &path, &json!({"data": {"i": i.to_string()}})).await.unwrap(),
            _ if i % 3 == 0 => {
                client.request(Request::delete(&path).body(Vec::new()).unwrap()).await.unwrap()
            }
            _ => merge(&client, &path, &json!({"data": {"last": "1"}})).await.unwrap(),
        };
    }
    n
}

fn names(list: &Value) -> BTreeMap<String, String> {
    let items = list["items"].as_array().unwrap().iter();
    let of = |object: &Value| {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        (name, revision(object).to_string())
    };
    items.map(of).collect()
}

/// Tries again soon, however often it failed.
struct Soon;

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(50))
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflector_that_was_away_longer_than_history_lists_again() {
    let flags = ["--no-controllers", "--history", "0", "--history-size", "0"];
    let companion = Companion::start(&flags).await;
    let client = companion.client().await;
    let relay = Relay::start(companion.address().parse().unwrap()).await;
    let api: Api<ConfigMap> = Api::default_namespaced(companion.client_by(&relay).await);
    post(&client, MAPS, &config_map("before")).await.unwrap();
    let (reader, writer) = reflector::store();
    let outcomes = Arc::new(Mutex::new((0, 0)));
    let counts = Arc::clone(&outcomes);
    let events = watcher(api, watcher::Config::default()).inspect(move |event| {
        let mut counts = counts.lock().unwrap();
        match event {
            Ok(Event::Init) => counts.0 += 1,
            Err(watcher::Error::WatchError(status)) if status.code == 410 => counts.1 += 1,
            _ => {}
        }
    });
    let stream = reflector(writer, events).backoff(Soon).map_ok(drop);
    let reflecting = tokio::spawn(stream.for_each(|_| std::future::ready(())));
    reader.wait_until_ready().await.unwrap();

    relay.cut();
    write_all(&client, 40, Duration::from_millis(1)).await;
    relay.mend();
    let wanted = names(&get(&client, MAPS).await.unwrap());
    eventually("the reflector holds what the server holds", || async {
        let held = reader.state().iter().map(|map| (map.name_any(), version(map))).collect();
        (wanted == held).then_some(())
    })
    .await;
    let (lists, gone) = *outcomes.lock().unwrap();
    assert_eq!((lists, gone), (2, 1), "told that its revision is gone, it listed once more");
    reflecting.abort();
}
