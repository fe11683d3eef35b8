//! What the controllers have heard of: every watched kind, as of its last event.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{StreamExt, pin_mut};
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::Value;
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::json::{name, namespace};
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
        Self { of: kinds.map(|kind| (kind, RwLock::default())).collect() }
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

    fn put(&self, kind: Kind, object: Value) -> Change {
        let (key, object) = (Key::of(&object), Arc::new(object));
        let old = self.of.get(&kind).and_then(|objects| {
            let mut objects = objects.write().unwrap_or_else(PoisonError::into_inner);
            objects.insert(key, Arc::clone(&object))
        });
        Change { kind, old, new: Some(object) }
    }

    fn remove(&self, kind: Kind, key: &Key) -> Change {
        let old = self.of.get(&kind).and_then(|objects| {
            objects.write().unwrap_or_else(PoisonError::into_inner).remove(key)
        });
        Change { kind, old, new: None }
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
        let api: Api<DynamicObject> = Api::all_with(cluster.client(), &kind.resource());
        let events = watcher(api, watcher::Config::default());
        pin_mut!(events);
        let mut listed: Option<Vec<Key>> = None;
        let mut failures = 0_u32;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = Some(Vec::new()),
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    failures = 0;
                    let Ok(object) = serde_json::to_value(&object) else { continue };
                    if let Some(listed) = &mut listed {
                        listed.push(Key::of(&object));
                    }
                    tell(&self.put(kind, object));
                }
                Ok(Event::InitDone) => {
                    let listed: std::collections::BTreeSet<Key> =
                        listed.take().unwrap_or_default().into_iter().collect();
                    for key in self.keys(kind).into_iter().filter(|key| !listed.contains(key)) {
                        tell(&self.remove(kind, &key));
                    }
                    synced.send_replace(true);
                }
                Ok(Event::Delete(object)) => {
                    let namespace = object.metadata.namespace.unwrap_or_default();
                    let key = Key { namespace, name: object.metadata.name.unwrap_or_default() };
                    tell(&self.remove(kind, &key));
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
