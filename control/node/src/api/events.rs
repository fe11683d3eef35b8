//! Events: what happened to pods, told in the order in which it happened, beside everything else.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use super::RequestError;

/// The agent's name in events.
const NAME: &str = "kubelet";
/// Events that wait; further ones are lost, as upstream's are.
const MOST: usize = 1000;

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

/// Something that happened, to whom, and when.
#[derive(Debug)]
struct Told {
    about: ObjectReference,
    happened: Happened,
    at: Timestamp,
}

/// Where events are told.
#[derive(Clone, Debug)]
pub(super) struct Teller(mpsc::Sender<Told>);

/// Events that are to be written.
#[derive(Debug)]
pub(crate) struct Waiting(mpsc::Receiver<Told>);

pub(super) fn queue() -> (Teller, Waiting) {
    let (sender, receiver) = mpsc::channel(MOST);
    (Teller(sender), Waiting(receiver))
}

impl Teller {
    pub(super) fn tell(&self, about: ObjectReference, happened: Happened) {
        let told = Told { about, happened, at: Timestamp::now() };
        if let Err(error) = self.0.try_send(told) {
            tracing::debug!(%error, "an event is lost");
        }
    }
}

/// Writes what is told, for as long as anybody may tell more.
pub(super) async fn write(client: &Client, node: &str, mut waiting: Waiting) {
    while let Some(told) = waiting.0.recv().await {
        if let Err(error) = write_one(client, node, told).await {
            tracing::debug!(%error, "an event is lost");
        }
    }
}

/// Said again, it counts.
async fn write_one(client: &Client, node: &str, told: Told) -> Result<(), RequestError> {
    let Told { about, happened, at } = told;
    let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let name = name(&about, &happened);
    let at = Some(Time(at));
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some(if happened.normal { "Normal" } else { "Warning" }.into()),
        reason: Some(happened.reason.into()),
        message: Some(happened.message),
        count: Some(1),
        first_timestamp: at.clone(),
        last_timestamp: at.clone(),
        source: Some(EventSource { component: Some(NAME.into()), host: Some(node.to_owned()) }),
        reporting_component: Some(NAME.into()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    };
    let made = api.create(&PostParams::default(), &event).await;
    match made.map_err(RequestError::at("record an event")) {
        Err(error) if error.code() == 409 => again(&api, &name, at).await,
        other => other.map(|_| ()),
    }
}

/// The same for what is the same.
fn name(about: &ObjectReference, happened: &Happened) -> String {
    let told = format!("{about:?}{}{}", happened.reason, happened.message);
    let hash = told.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}.{hash:016x}", about.name.as_deref().unwrap_or_default())
}

async fn again(api: &Api<Event>, name: &str, at: Option<Time>) -> Result<(), RequestError> {
    let known = api.get(name).await.map_err(RequestError::at("read an event"))?;
    let count = known.count.unwrap_or(1) + 1;
    let patch = Patch::Merge(json!({"count": count, "lastTimestamp": at}));
    let counted = api.patch(name, &PatchParams::default(), &patch).await;
    counted.map(|_| ()).map_err(RequestError::at("count an event"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_again_is_the_same_event() {
        let about = |pod: &str| ObjectReference { name: Some(pod.into()), ..Default::default() };
        let said = |what: &str| Happened::ill("BackOff", what);
        assert_eq!(name(&about("a"), &said("x")), name(&about("a"), &said("x")));
        assert_ne!(name(&about("a"), &said("x")), name(&about("b"), &said("x")));
        assert_ne!(name(&about("a"), &said("x")), name(&about("a"), &said("y")));
    }

    #[test]
    fn nobody_waits_for_events_that_nobody_writes() {
        let (teller, mut waiting) = queue();
        for n in 0..=MOST {
            teller.tell(ObjectReference::default(), Happened::well("Pulled", n.to_string()));
        }
        assert_eq!(waiting.0.len(), MOST);
        assert_eq!(waiting.0.try_recv().unwrap().happened.message, "0");
    }
}
