//! A namespace that is being deleted: first what is in it, then it.

use std::time::Duration;

use futures::FutureExt;
use serde_json::json;

use crate::cache::Key;
use crate::cluster::Result;
use crate::json::{is_being_deleted, list_at};
use crate::kinds::{ALL, NAMESPACE};
use crate::run::{Again, Context, Controller};

pub(crate) const CONTROLLER: Controller = Controller {
    name: "namespace-controller",
    kinds: &[NAMESPACE],
    concerns: |_, change| change.object().map(Key::of).into_iter().collect(),
    reconcile: |context, key| reconcile(context, key).boxed(),
};

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let cluster = &context.cluster;
    let Some(namespace) = cluster.get(NAMESPACE, "", &key.name).await? else { return Ok(None) };
    if !is_being_deleted(&namespace) || list_at(&namespace, "spec.finalizers").is_empty() {
        return Ok(None);
    }
    let mut left = 0;
    for kind in ALL.into_iter().filter(|kind| kind.namespaced) {
        if cluster.list(kind, &key.name, "").await?.is_empty() {
            continue;
        }
        cluster.delete_all(kind, &key.name).await?;
        left += cluster.list(kind, &key.name, "").await?.len();
    }
    if left > 0 {
        tracing::debug!(namespace = key.name, left, "not yet empty");
        return Ok(Some(Duration::from_millis(500)));
    }
    let mut done = namespace.clone();
    done["spec"]["finalizers"] = json!([]);
    let path = format!("{}/finalize", NAMESPACE.path("", &key.name));
    cluster.put(path, &done).await?;
    Ok(None)
}
