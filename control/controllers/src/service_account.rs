//! Every namespace has a service account `default`.

use futures::FutureExt;
use serde_json::json;

use crate::cache::Key;
use crate::cluster::Result;
use crate::json::{is_being_deleted, name};
use crate::kinds::{NAMESPACE, SERVICE_ACCOUNT};
use crate::run::{Again, Context, Controller};

pub(crate) const CONTROLLER: Controller = Controller {
    name: "serviceaccount-controller",
    kinds: &[NAMESPACE, SERVICE_ACCOUNT],
    concerns: |_, change| match (change.kind, change.object()) {
        (NAMESPACE, Some(namespace)) => vec![Key::new("", name(namespace))],
        (_, Some(account)) if change.new.is_none() && name(account) == "default" => {
            vec![Key::new("", crate::json::namespace(account))]
        }
        _ => Vec::new(),
    },
    reconcile: |context, key| reconcile(context, key).boxed(),
};

async fn reconcile(context: Context, key: Key) -> Result<Again> {
    let namespace = context.caches.get(NAMESPACE, &key);
    if namespace.is_none_or(|namespace| is_being_deleted(&namespace)) {
        return Ok(None);
    }
    let account = json!({"metadata": {"name": "default", "namespace": key.name}});
    match context.cluster.ensure(SERVICE_ACCOUNT, &account).await {
        // The namespace has just gone, or is going.
        Err(error) if matches!(error.code(), 403 | 404) => Ok(None),
        other => other.map(|()| None),
    }
}
