//! The API as the agent uses it.

mod events;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, ObjectReference, Pod, PodStatus, Secret, Service, ServiceAccount,
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Map, Value, json};

pub(crate) use events::{Happened, Waiting};

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub(crate) struct RequestError {
    doing: &'static str,
    source: Box<kube::Error>,
}

impl RequestError {
    fn at(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self { doing, source: Box::new(source) }
    }

    pub(crate) fn code(&self) -> u16 {
        match self.source.as_ref() {
            kube::Error::Api(status) => status.code,
            _ => 0,
        }
    }
}

/// A client of the API server.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    node: String,
    events: events::Teller,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Cluster {
    /// A client, and the events that it is to write.
    pub(crate) fn new(client: Client, node: &str) -> (Self, Waiting) {
        let (events, waiting) = events::queue();
        (Self { client, node: node.to_owned(), events }, waiting)
    }

    /// Writes events for ever.
    pub(crate) async fn write_events(&self, waiting: Waiting) {
        events::write(&self.client, &self.node, waiting).await;
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    fn pods(&self, pod: &Pod) -> Api<Pod> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Writes a pod's status, if it is the same pod still; gives the pod as it is then.
    pub(crate) async fn write_status(
        &self,
        pod: &Pod,
        status: &PodStatus,
    ) -> Result<Option<Pod>, RequestError> {
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": difference(&json!(pod.status), &json!(status)),
        });
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let params = PatchParams::default();
        let patched = self.pods(pod).patch_status(name, &params, &Patch::Merge(patch)).await;
        match patched.map_err(RequestError::at("write a pod's status")) {
            Ok(pod) => Ok(Some(pod)),
            // Gone, or another of the same name.
            Err(error) if matches!(error.code(), 404 | 409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the API forget a pod; that it has is fine.
    pub(crate) async fn forget(&self, pod: &Pod) -> Result<(), RequestError> {
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match self.pods(pod).delete(name, &params).await.map_err(RequestError::at("delete a pod")) {
            Err(error) if !matches!(error.code(), 404 | 409) => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ConfigMap>, RequestError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(RequestError::at("read a config map"))
    }

    pub(crate) async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Secret>, RequestError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(RequestError::at("read a secret"))
    }

    pub(crate) async fn services(&self, namespace: &str) -> Result<Vec<Service>, RequestError> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let list = api.list(&ListParams::default()).await;
        Ok(list.map_err(RequestError::at("list services"))?.items)
    }

    pub(crate) async fn service(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Service>, RequestError> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(RequestError::at("read a service"))
    }

    /// A token by which a pod's processes speak to the API as its service account.
    pub(crate) async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<String, RequestError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.map(ToOwned::to_owned).into_iter().collect()),
                expiration_seconds: Some(seconds),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let issued = api.create_token_request(account, &PostParams::default(), &request).await;
        let issued = issued.map_err(RequestError::at("ask for a service account's token"))?;
        Ok(issued.status.and_then(|status| status.token).unwrap_or_default())
    }

    /// Tells what happened to a pod or one of its containers, soon: nobody waits for it.
    pub(crate) fn event(&self, about: &ObjectReference, happened: Happened) {
        self.events.tell(about.clone(), happened);
    }
}

/// A merge patch from one object to another: what is no longer there becomes null.
fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        match old.get(name) {
            Some(before) if before == value => {}
            Some(before) if before.is_object() && value.is_object() => {
                patch.insert(name.clone(), difference(before, value));
            }
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_what_goes_and_what_differs() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "e": [1]});
        let new = json!({"b": {"c": 1, "d": 3}, "e": [2], "f": 4});
        let patch = json!({"a": null, "b": {"d": 3}, "e": [2], "f": 4});
        assert_eq!(difference(&old, &new), patch);
        assert_eq!(difference(&Value::Null, &new), new);
    }
}
