//! What the controllers have heard of: every watched kind, as of its last event.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt, pin_mut};
use kube::Api;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::json::{at, list_at, name, namespace, set, str_at};
use crate::kinds::Kind;

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Empty for what lives in no namespace.
    pub(crate) namespace: String,
    /// The object's name.
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(crate) fn of(object: &Value) -> Self {
        Self::new(namespace(object), name(object))
    }
}

type Objects = BTreeMap<Key, Arc<Value>>;

/// The kinds that are watched, and their objects.
#[derive(Debug)]
pub(crate) struct Caches {
    of: HashMap<Kind, RwLock<Objects>>,
    /// What each uid owns.
    owned: RwLock<HashMap<String, HashSet<(Kind, Key)>>>,
}

/// A change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) old: Option<Arc<Value>>,
    pub(crate) new: Option<Arc<Value>>,
}

impl Change {
    /// The object, as it is or last was.
    pub(crate) fn object(&self) -> Option<&Value> {
        self.new.as_deref().or(self.old.as_deref())
    }
}

impl Caches {
    pub(crate) fn new(kinds: impl Iterator<Item = Kind>) -> Self {
        let of = kinds.map(|kind| (kind, RwLock::default())).collect();
        Self { of, owned: RwLock::default() }
    }

    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.of.keys().copied()
    }

    pub(crate) fn get(&self, kind: Kind, key: &Key) -> Option<Arc<Value>> {
        let objects = self.of.get(&kind)?.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(key).cloned()
    }

    /// The objects of a kind in a namespace; everywhere, if that is empty.
    pub(crate) fn list(&self, kind: Kind, namespace: &str) -> Vec<Arc<Value>> {
        let Some(objects) = self.of.get(&kind) else { return Vec::new() };
        let objects = objects.read().unwrap_or_else(PoisonError::into_inner);
        let all = objects.range(Key::new(namespace, "")..);
        let here = all.take_while(|(key, _)| namespace.is_empty() || key.namespace == namespace);
        here.map(|(_, object)| Arc::clone(object)).collect()
    }

    /// The objects that name a uid among their owners.
    pub(crate) fn owned_by(&self, uid: &str) -> Vec<(Kind, Arc<Value>)> {
        let owned = self.owned.read().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<(Kind, Key)> = owned.get(uid).into_iter().flatten().cloned().collect();
        drop(owned);
        keys.into_iter().filter_map(|(kind, key)| Some((kind, self.get(kind, &key)?))).collect()
    }

    pub(crate) fn put(&self, kind: Kind, object: Value) -> Change {
        let (key, object) = (Key::of(&object), Arc::new(object));
        let old = self.of.get(&kind).and_then(|objects| {
            let mut objects = objects.write().unwrap_or_else(PoisonError::into_inner);
            objects.insert(key.clone(), Arc::clone(&object))
        });
        let change = Change { kind, old, new: Some(object) };
        self.note_owners(&key, &change);
        change
    }

    fn remove(&self, kind: Kind, key: &Key) -> Change {
        let old = self.of.get(&kind).and_then(|objects| {
            objects.write().unwrap_or_else(PoisonError::into_inner).remove(key)
        });
        let change = Change { kind, old, new: None };
        self.note_owners(key, &change);
        change
    }

    fn note_owners(&self, key: &Key, change: &Change) {
        let (before, after) = (owners(change.old.as_deref()), owners(change.new.as_deref()));
        if before == after {
            return;
        }
        let mut owned = self.owned.write().unwrap_or_else(PoisonError::into_inner);
        for owner in before {
            if let Some(keys) = owned.get_mut(owner) {
                keys.remove(&(change.kind, key.clone()));
                if keys.is_empty() {
                    owned.remove(owner);
                }
            }
        }
        for owner in after {
            owned.entry(owner.to_owned()).or_default().insert((change.kind, key.clone()));
        }
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        let Some(objects) = self.of.get(&kind) else { return Vec::new() };
        let objects = objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.keys().cloned().collect()
    }

    /// Follows one kind for ever, telling of every change; `synced` becomes true after the first
    /// whole list.
    pub(crate) async fn follow(
        &self,
        kind: Kind,
        cluster: &Cluster,
        synced: watch::Sender<bool>,
        tell: impl Fn(&Change),
    ) {
        let (client, config) = (cluster.client(), watcher::Config::default());
        if kind.kept == Some(&[]) {
            let api: Api<PartialObjectMeta<DynamicObject>> =
                Api::all_with(client, &kind.resource());
            self.take_up(kind, watcher(api, config), synced, tell).await;
        } else {
            let api: Api<DynamicObject> = Api::all_with(client, &kind.resource());
            self.take_up(kind, watcher(api, config), synced, tell).await;
        }
    }

    async fn take_up<T: Serialize>(
        &self,
        kind: Kind,
        events: impl Stream<Item = watcher::Result<Event<T>>>,
        synced: watch::Sender<bool>,
        tell: impl Fn(&Change),
    ) {
        pin_mut!(events);
        let mut listed: Option<BTreeSet<Key>> = None;
        let mut failures = 0_u32;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = Some(BTreeSet::new()),
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    failures = 0;
                    let Ok(object) = serde_json::to_value(&object) else { continue };
                    if let Some(listed) = &mut listed {
                        listed.insert(Key::of(&object));
                    }
                    tell(&self.put(kind, kept(kind, object)));
                }
                Ok(Event::InitDone) => {
                    let listed = listed.take().unwrap_or_default();
                    for key in self.keys(kind).into_iter().filter(|key| !listed.contains(key)) {
                        tell(&self.remove(kind, &key));
                    }
                    synced.send_replace(true);
                }
                Ok(Event::Delete(object)) => {
                    let Ok(object) = serde_json::to_value(&object) else { continue };
                    tell(&self.remove(kind, &Key::of(&object)));
                }
                Err(error) => {
                    tracing::debug!(kind = kind.plural, %error, "a watch ended");
                    failures += 1;
                    let wait = std::time::Duration::from_millis(50 << failures.min(7));
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// The uids of an object's owners.
fn owners(object: Option<&Value>) -> Vec<&str> {
    let all = object.map_or(&[][..], |object| list_at(object, "metadata.ownerReferences"));
    all.iter().map(|owner| str_at(owner, "uid")).collect()
}

/// An object without what no controller reads in the cache: with ten thousand it adds up.
fn kept(kind: Kind, mut object: Value) -> Value {
    const METADATA: [&str; 7] = [
        "namespace",
        "name",
        "uid",
        "labels",
        "ownerReferences",
        "finalizers",
        "deletionTimestamp",
    ];
    let Some(fields) = kind.kept else {
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.remove("managedFields");
        }
        return object;
    };
    let mut small = Value::Null;
    let metadata = METADATA.map(|field| format!("metadata.{field}"));
    for path in metadata.iter().map(String::as_str).chain(fields.iter().copied()) {
        if !at(&object, path).is_null() {
            set(&mut small, path, at(&object, path).clone());
        }
    }
    small
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{CONFIG_MAP, ENDPOINT_SLICE, POD, SERVICE};

    #[test]
    fn the_cache_keeps_of_a_kind_what_its_row_says() {
        let object = || {
            json!({
                "metadata": {"name": "a", "labels": {"b": "c"}, "managedFields": [{}]},
                "spec": {"selector": {"d": "e"}, "ports": [{}]}, "endpoints": [{}],
            })
        };
        let metadata = json!({"name": "a", "labels": {"b": "c"}});
        assert_eq!(kept(ENDPOINT_SLICE, object()), json!({"metadata": metadata}));
        let service = json!({"metadata": metadata, "spec": {"selector": {"d": "e"}}});
        assert_eq!(kept(SERVICE, object()), service);
        let mut pod = object();
        pod["metadata"] = metadata;
        assert_eq!(kept(POD, object()), pod);
    }

    #[test]
    fn an_owner_finds_what_it_owns_as_long_as_it_does() {
        let caches = Caches::new([CONFIG_MAP, POD].into_iter());
        let object = |name: &str, owners: &[&str]| {
            let owners: Vec<Value> = owners.iter().map(|uid| json!({"uid": uid})).collect();
            json!({"metadata": {"namespace": "n", "name": name, "ownerReferences": owners}})
        };
        let owned = |uid: &str| {
            let mut names: Vec<String> =
                caches.owned_by(uid).iter().map(|(_, object)| name(object).to_owned()).collect();
            names.sort();
            names
        };
        caches.put(POD, object("a", &["one", "two"]));
        caches.put(CONFIG_MAP, object("b", &["one"]));
        assert_eq!((owned("one"), owned("two")), (vec!["a".into(), "b".into()], vec!["a".into()]));
        caches.put(POD, object("a", &["two"]));
        assert_eq!((owned("one"), owned("two")), (vec!["b".into()], vec!["a".into()]));
        caches.remove(CONFIG_MAP, &Key::new("n", "b"));
        assert_eq!(owned("one"), Vec::<String>::new());
        assert!(!caches.owned.read().unwrap().contains_key("one"));
    }
}
