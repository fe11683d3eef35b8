//! Problems as Events of the objects that have them, so that `kubectl describe` shows them.
//!
//! ```text
//!  Notices (the set there is now) ─▶ Ledger (what was told, and when) ─▶ one Event at a time
//!                                       ▲                                      │
//!                                       └────── told, or try later ◀───────────┘
//! ```
//!
//! Best effort: nothing waits for it, and what cannot be sent now is sent when it can be, as long
//! as it is still true.

mod ledger;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::{ObjectMeta, PartialObjectMeta, Status};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::notice::Notice;
use crate::source::kube::backoff::Backoff;
use crate::source::kube::events::ledger::Ledger;

/// Who tells, as Events name it.
const CONTROLLER: &str = "fairlead.dev/proxy";
/// Of a note; the API takes no more.
const LONGEST_NOTE: usize = 1024;
/// Of the object's name, so that the Event's stays a name.
const LONGEST_NAME: usize = 200;
/// An answer takes longer than this only if nobody is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Permissions do not change by themselves.
const FORBIDDEN_FOR: Duration = Duration::from_secs(600);

/// Why an Event was not sent.
enum Unsent {
    /// This identity may send none.
    Forbidden(String),
    /// This one will not be taken, however often it is sent.
    Refused(String),
    /// Anything else: it may work later.
    Failed(String),
}

impl From<kube::Error> for Unsent {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                403 if is_ending(&status) => Self::Refused(status.message),
                401 | 403 => Self::Forbidden(status.message),
                408 | 429 | 500.. => Self::Failed(status.message),
                _ => Self::Refused(status.message),
            },
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Whether only this namespace takes nothing more, because it is being deleted.
fn is_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Everything that the sender reacts to.
enum Next {
    Changed,
    Due(Notice, u32),
    End,
}

/// Tells the owners of objects what there is to tell, until nobody can say any more what that is.
pub(super) async fn run(
    client: Client,
    instance: Arc<str>,
    mut notices: watch::Receiver<Arc<BTreeSet<Notice>>>,
) {
    let sender = Sender { client, instance };
    let mut ledger = Ledger::new(Instant::now());
    let mut backoff = Backoff::default();
    let mut was_forbidden = false;
    loop {
        let event = match ledger.next() {
            None => changed(&mut notices).await,
            Some((at, notice, count)) => {
                tokio::select! {
                    biased;
                    event = changed(&mut notices) => event,
                    () = sleep_until(at) => Next::Due(notice, count),
                }
            }
        };
        match event {
            Next::End => return,
            Next::Changed => {
                let now = Arc::clone(&notices.borrow_and_update());
                ledger.set(now, Instant::now());
            }
            Next::Due(notice, count) => match sender.send(&notice, count).await {
                Ok(()) => {
                    backoff.reset();
                    ledger.told(notice, Instant::now());
                }
                Err(Unsent::Forbidden(why)) => {
                    if !was_forbidden {
                        tracing::warn!(
                            "problems cannot be told as Events: {why}; give this identity create \
                             and patch on events in events.k8s.io"
                        );
                    }
                    was_forbidden = true;
                    ledger.hold(Instant::now() + FORBIDDEN_FOR);
                }
                Err(Unsent::Refused(why)) => {
                    tracing::debug!("an Event about {} is refused: {why}", notice.problem.object);
                    ledger.told(notice, Instant::now());
                }
                Err(Unsent::Failed(why)) => {
                    tracing::debug!("an Event about {} was not sent: {why}", notice.problem.object);
                    ledger.hold(Instant::now() + backoff.next());
                }
            },
        }
    }
}

async fn changed(notices: &mut watch::Receiver<Arc<BTreeSet<Notice>>>) -> Next {
    if notices.changed().await.is_ok() { Next::Changed } else { Next::End }
}

/// Writes Events.
struct Sender {
    client: Client,
    /// The node.
    instance: Arc<str>,
}

impl Sender {
    /// Creates the Event, or says that it was so once more. An object that is gone needs none.
    async fn send(&self, notice: &Notice, count: u32) -> Result<(), Unsent> {
        match timeout(ANSWER_WITHIN, self.write(notice, count)).await {
            Ok(written) => written,
            Err(_elapsed) => Err(Unsent::Failed(format!("no answer within {ANSWER_WITHIN:?}"))),
        }
    }

    async fn write(&self, notice: &Notice, count: u32) -> Result<(), Unsent> {
        let Some(regarding) = self.regarding(&notice.problem.object).await? else { return Ok(()) };
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let event = self.event(notice, regarding, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        if count > 1 && self.repeat(&events, &name, count).await? {
            return Ok(());
        }
        match events.create(&PostParams::default(), &event).await {
            // A former process of this node has told it.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.repeat(&events, &name, count.max(2)).await.map(drop)
            }
            created => Ok(created.map(drop)?),
        }
    }

    /// Whether there is such an Event still; then it counts as having happened so often.
    async fn repeat(&self, events: &Api<Event>, name: &str, count: u32) -> Result<bool, Unsent> {
        let series = json!({"series": {
            "count": count, "lastObservedTime": MicroTime(Timestamp::now()),
        }});
        match events.patch(name, &PatchParams::default(), &Patch::Merge(&series)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The object, as an Event names it; `None` if there is no such object.
    async fn regarding(&self, object: &str) -> Result<Option<ObjectReference>, Unsent> {
        let Some((kind, path)) = object.split_once(' ') else { return Ok(None) };
        let (namespace, name) = match path.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, path),
        };
        let (api_version, uid) = match (kind, namespace) {
            ("Service", Some(namespace)) => ("v1", self.uid::<Service>(namespace, name).await?),
            ("Pod", Some(namespace)) => ("v1", self.uid::<Pod>(namespace, name).await?),
            ("EndpointSlice", Some(namespace)) => {
                ("discovery.k8s.io/v1", self.uid::<EndpointSlice>(namespace, name).await?)
            }
            // As the kubelet has it: a Node's name in the place of its uid.
            ("Node", None) => ("v1", Some(name.to_owned())),
            _ => return Ok(None),
        };
        Ok(uid.map(|uid| ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.to_owned()),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            uid: Some(uid),
            ..ObjectReference::default()
        }))
    }

    /// The uid of an object, by which `kubectl describe` finds its Events. Listed, because
    /// kube-proxy's role may list but not get.
    async fn uid<K>(&self, namespace: &str, name: &str) -> Result<Option<String>, Unsent>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug,
    {
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().fields(&format!("metadata.name={name}")).limit(1);
        let found = api.list_metadata(&params).await?;
        Ok(found.items.into_iter().find_map(|object| object.metadata.uid))
    }

    fn event(&self, notice: &Notice, regarding: ObjectReference, namespace: &str) -> Event {
        let object = regarding.name.as_deref().unwrap_or_default();
        let problem = &notice.problem;
        let note = if problem.field.is_empty() {
            problem.reason.to_string()
        } else {
            format!("{}: {}", problem.field, problem.reason)
        };
        Event {
            metadata: ObjectMeta {
                name: Some(self.name(notice, object)),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some("Warning".to_owned()),
            action: Some(notice.reason.action().to_owned()),
            reason: Some(notice.reason.name().to_owned()),
            note: Some(cut(&note, LONGEST_NOTE).to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(regarding),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(cut(&self.instance, 128).to_owned()),
            ..Event::default()
        }
    }

    /// The same after a restart, so that a process which starts again and again adds nothing.
    fn name(&self, notice: &Notice, object: &str) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.instance, notice).hash(&mut hasher);
        let object = cut(object, LONGEST_NAME).trim_end_matches(['-', '.']);
        format!("{object}.{:016x}", hasher.finish())
    }
}

/// As much of a text as so many bytes hold.
fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default()
}
