//! Revisions, history and durability of the store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::kinds;

const KEEP: Retention = Retention { age: Duration::from_secs(3600), bytes: 1 << 30 };

fn key(name: &str) -> Key {
    Key::new(kinds::number("configmaps"), "default", name)
}

fn value(data: &str) -> Value {
    json!({"metadata": {"name": "x"}, "data": {"a": data}})
}

async fn put(store: &Store, name: &str, data: &str) -> u64 {
    let (key, value) = (key(name), value(data));
    store.write(move |txn| Ok(txn.put(key, value).revision)).await.unwrap()
}

async fn delete(store: &Store, name: &str) -> u64 {
    let key = key(name);
    let write = move |txn: &mut Txn<'_>| {
        let last = txn.get(&key).unwrap().value();
        Ok(txn.delete(key, last).revision)
    };
    store.write(write).await.unwrap()
}

fn open(path: &Path, retention: Retention) -> Store {
    // The writer of a store that was just dropped holds the lock until it has ended.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(path, retention) {
            Ok(store) => return store,
            Err(error) if std::time::Instant::now() > deadline => panic!("{error:?}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn names(objects: &BTreeMap<ObjectName, Arc<Object>>) -> Vec<String> {
    objects.keys().map(|(_, name)| name.to_string()).collect()
}

#[tokio::test]
async fn a_reopened_store_has_the_objects_the_revision_and_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), KEEP);
    let first = put(&store, "a", "1").await;
    put(&store, "b", "1").await;
    put(&store, "a", "2").await;
    let last = delete(&store, "b").await;
    drop(store);

    let store = open(dir.path(), KEEP);
    let state = store.read();
    assert_eq!(state.revision, last);
    assert_eq!(state.get(&key("a")).unwrap().value()["data"]["a"], "2");
    assert!(state.get(&key("b")).is_none());
    let kind = kinds::number("configmaps");
    let events: Vec<u64> =
        state.history().after(kind, first).unwrap().map(|event| event.object.revision).collect();
    assert_eq!(events, [first + 1, first + 2, first + 3]);
}

#[tokio::test]
async fn an_earlier_revision_can_still_be_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), KEEP);
    let first = put(&store, "a", "1").await;
    let second = put(&store, "b", "1").await;
    put(&store, "a", "2").await;
    delete(&store, "b").await;
    let state = store.read();
    let kind = kinds::number("configmaps");
    let then = state.list_at(kind, Some("default"), second).unwrap();
    assert_eq!(names(&then), ["a", "b"]);
    assert!(then.values().all(|object| object.value()["data"]["a"] == "1"));
    assert_eq!(names(&state.list_at(kind, None, first).unwrap()), ["a"]);
}

#[tokio::test]
async fn compacted_history_is_refused_and_its_rows_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let none = Retention { age: Duration::ZERO, bytes: 0 };
    let store = open(dir.path(), none);
    let first = put(&store, "a", "0").await;
    for i in 0..300 {
        put(&store, "a", &i.to_string()).await;
    }
    put(&store, "z", "1").await;
    let kind = kinds::number("configmaps");
    let refused = store.read().history().after(kind, first).err().unwrap();
    assert_eq!((refused.code, refused.reason), (410, "Expired"));
    drop(store);

    let store = open(dir.path(), none);
    assert_eq!(store.read().get(&key("a")).unwrap().value()["data"]["a"], "299");
    assert!(store.read().history().after(kind, first).is_err());
    drop(store);
    let rows: i64 = rusqlite::Connection::open(dir.path().join("control.db"))
        .unwrap()
        .query_row("SELECT count(*) FROM log", [], |row| row.get(0))
        .unwrap();
    assert!(rows < 300, "{rows} rows");
}

#[tokio::test]
async fn a_refused_transaction_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), KEEP);
    let before = put(&store, "a", "1").await;
    let refused = store
        .write(|txn| -> Result<()> {
            txn.put(key("b"), value("1"));
            Err(Status::bad_request("no"))
        })
        .await;
    assert_eq!(refused.unwrap_err().code, 400);
    assert!(store.read().get(&key("b")).is_none());
    assert_eq!(put(&store, "c", "1").await, before + 1);
}

#[tokio::test]
async fn a_second_process_cannot_open_the_same_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path(), KEEP);
    let refused = Store::open(dir.path(), KEEP).unwrap_err();
    assert!(matches!(refused, OpenStoreError::Database(_)), "{refused:?}");
}
