//! The API as the agent uses it.

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, EventSource, ObjectReference, Pod, PodStatus, Secret, Service, ServiceAccount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{
    DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions,
};
use kube::{Api, Client};
use serde_json::{Map, Value, json};

/// The agent's name in events.
const NAME: &str = "kubelet";

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
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Cluster {
    pub(crate) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
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

    /// Tells what happened to a pod or one of its containers. Said again, it counts.
    pub(crate) async fn event(&self, about: &ObjectReference, happened: &Happened) {
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let told = format!("{about:?}{}{}", happened.reason, happened.message);
        let hash = told.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let name = format!("{}.{hash:016x}", about.name.as_deref().unwrap_or_default());
        let now = Some(Time(Timestamp::now()));
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: about.clone(),
            type_: Some(if happened.normal { "Normal" } else { "Warning" }.into()),
            reason: Some(happened.reason.into()),
            message: Some(happened.message.clone()),
            count: Some(1),
            first_timestamp: now.clone(),
            last_timestamp: now.clone(),
            source: Some(EventSource {
                component: Some(NAME.into()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some(NAME.into()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        };
        let made = api.create(&PostParams::default(), &event).await;
        let told = match made.map_err(RequestError::at("record an event")) {
            Err(error) if error.code() == 409 => again(&api, &name, now).await,
            other => other.map(|_| ()),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "an event is lost");
        }
    }
}

async fn again(api: &Api<Event>, name: &str, now: Option<Time>) -> Result<(), RequestError> {
    let known = api.get(name).await.map_err(RequestError::at("read an event"))?;
    let count = known.count.unwrap_or(1) + 1;
    let patch = Patch::Merge(json!({"count": count, "lastTimestamp": now}));
    let counted = api.patch(name, &PatchParams::default(), &patch).await;
    counted.map(|_| ()).map_err(RequestError::at("count an event"))
}

/// Something that happened to a pod, for its readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Happened {
    pub(crate) normal: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Happened {
    pub(crate) fn well(reason: &'static str, message: impl Into<String>) -> Self {
        Self { normal: true, reason, message: message.into() }
    }

    pub(crate) fn ill(reason: &'static str, message: impl Into<String>) -> Self {
        Self { normal: false, reason, message: message.into() }
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
