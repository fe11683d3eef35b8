//! One document to our types, in one pass.
//!
//! A document's kind stands in the document, so its type is known only while it is read. Nearly
//! every document says `apiVersion` and `kind` first: then what follows is read straight into the
//! object of that kind, and a `List`'s items one by one, so that no more than one API object
//! exists at a time. Documents in another order, and Lists with a broken item, are read the slow way.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::endpoint::EndpointSlice;
use crate::name::NamespacedName;
use crate::node::Node;
use crate::parse::{self, Names, Parsed};
use crate::pod::{Pod, SocketLb};
use crate::problem::Problem;
use crate::service::Service;

/// Which object: a kind and a name. Nodes and Namespaces have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: ObjectKind,
    pub(super) name: NamespacedName,
}

impl Key {
    /// The key of what claims to be an object, whether it is one or not.
    fn of(kind: ObjectKind, namespace: Option<&str>, name: &str, names: &mut Names) -> Self {
        let namespace = match namespace {
            _ if !kind.is_namespaced() => "",
            Some(namespace) if !namespace.is_empty() => namespace,
            _ => "default",
        };
        let name = NamespacedName { namespace: names.share(namespace), name: names.share(name) };
        Self { kind, name }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.namespace.is_empty() {
            write!(f, "{} {}", self.kind.name(), self.name.name)
        } else {
            write!(f, "{} {}", self.kind.name(), self.name)
        }
    }
}

/// The kinds that a file may hold and that somebody here reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ObjectKind {
    Namespace,
    Node,
    Service,
    EndpointSlice,
    Endpoints,
    Pod,
}

impl ObjectKind {
    fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Namespace") => Some(Self::Namespace),
            ("v1", "Node") => Some(Self::Node),
            ("v1", "Service") => Some(Self::Service),
            ("v1", "Endpoints") => Some(Self::Endpoints),
            ("v1", "Pod") => Some(Self::Pod),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Pod => "Pod",
        }
    }

    const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

/// An object as we keep it. Equal ones need no change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// With what it says of its pods' sockets.
    Namespace(Option<SocketLb>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    /// One of an `EndpointSlice`; any number of `Endpoints`.
    Slices(Vec<Arc<EndpointSlice>>),
    Pod(Arc<Pod>),
}

/// What the documents of a file gave so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) objects: Vec<(Key, Object)>,
    /// Objects whose document is broken, but says which object it is.
    pub(super) broken: Vec<Key>,
    pub(super) problems: Vec<Problem>,
    /// Objects of kinds that nobody here reads.
    pub(super) n_others: usize,
}

/// Reads a document's object, or a List's objects, into [`Found`].
pub(super) struct ObjectSeed<'a> {
    pub(super) found: &'a mut Found,
    pub(super) names: &'a mut Names,
    /// What a list says of the items that do not say it themselves.
    pub(super) header: Header,
}

/// What a document says first.
#[derive(Clone, Debug, Default)]
pub(super) struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

impl Header {
    /// The kind of a typed list's items: `ServiceList` holds Services.
    fn of_items(&self) -> Self {
        match self.kind.as_deref().and_then(|kind| kind.strip_suffix("List")) {
            Some(item) if !item.is_empty() => {
                Self { api_version: self.api_version.clone(), kind: Some(item.to_owned()) }
            }
            _ => Self::default(),
        }
    }

    fn is_list(&self) -> bool {
        self.kind.as_deref().is_some_and(|kind| kind.ends_with("List"))
    }

    fn object_kind(&self) -> Option<ObjectKind> {
        ObjectKind::of(self.api_version.as_deref()?, self.kind.as_deref()?)
    }
}

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "apiVersion" => self.header.api_version = Some(map.next_value()?),
                "kind" => self.header.kind = Some(map.next_value()?),
                _ => return self.rest(Some(key), map),
            }
        }
        self.rest(None, NoMore(std::marker::PhantomData))
    }
}

impl ObjectSeed<'_> {
    /// Everything from the first key on that is neither `apiVersion` nor `kind`.
    fn rest<'de, A>(mut self, first: Option<String>, mut map: A) -> Result<(), A::Error>
    where
        A: MapAccess<'de>,
    {
        let unsure = self.header.kind.is_none() || self.header.api_version.is_none();
        let is_list = self.header.is_list();
        match first {
            Some(key) if key == "items" && (unsure || is_list) => return self.list(map),
            Some(_) if unsure => return Err(A::Error::custom(OUT_OF_ORDER)),
            None if unsure => return Err(A::Error::custom(NO_KIND)),
            None if is_list => return Ok(()),
            Some(_) if is_list => {}
            first => {
                let object = MapAccessDeserializer::new(Rest { first, map });
                return match self.header.object_kind() {
                    Some(kind) => self.take(kind, object),
                    None => {
                        self.found.n_others += 1;
                        IgnoredAny::deserialize(object).map(|_| ())
                    }
                };
            }
        }
        // A list's metadata; its items follow.
        map.next_value::<IgnoredAny>()?;
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                return self.list(map);
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    /// From a list's `items` on. Its kind may stand behind them, as kubectl sorts keys.
    fn list<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut header = self.header;
        let items = Items { found: self.found, names: self.names, header: header.of_items() };
        map.next_value_seed(items)?;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "apiVersion" => header.api_version = Some(map.next_value()?),
                "kind" => header.kind = Some(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if header.is_list() {
            return Ok(());
        }
        Err(A::Error::custom("items, but the kind is no List; remove one of the two"))
    }

    /// One object of a known kind.
    fn take<'de, D: Deserializer<'de>>(
        &mut self,
        kind: ObjectKind,
        object: D,
    ) -> Result<(), D::Error> {
        let names = &mut *self.names;
        match kind {
            ObjectKind::Namespace => {
                #[derive(Deserialize)]
                struct Namespace {
                    #[serde(default)]
                    metadata: ObjectMeta,
                }
                let object = Namespace::deserialize(object)?;
                let parsed = parse::namespace(&object.metadata, names);
                self.keep(kind, &object.metadata, parsed, |namespace| {
                    (cluster_key(kind, &namespace.name), Object::Namespace(namespace.socket_lb))
                });
            }
            ObjectKind::Node => {
                let object = core::Node::deserialize(object)?;
                let parsed = parse::node(&object, names);
                self.keep(kind, &object.metadata, parsed, |node| {
                    (cluster_key(kind, &node.name), Object::Node(Arc::new(node)))
                });
            }
            ObjectKind::Service => {
                let object = core::Service::deserialize(object)?;
                let parsed = parse::service(&object, names);
                self.keep(kind, &object.metadata, parsed, |service| {
                    (Key { kind, name: service.name.clone() }, Object::Service(Arc::new(service)))
                });
            }
            ObjectKind::EndpointSlice => {
                let object = discovery::EndpointSlice::deserialize(object)?;
                let parsed = parse::slice(&object, names);
                self.keep(kind, &object.metadata, parsed, |slice| {
                    let name = slice.name.clone();
                    (Key { kind, name }, Object::Slices(vec![Arc::new(slice)]))
                });
            }
            ObjectKind::Endpoints => self.endpoints(&core::Endpoints::deserialize(object)?),
            ObjectKind::Pod => {
                let object = core::Pod::deserialize(object)?;
                let parsed = parse::pod(&object, names);
                self.keep(kind, &object.metadata, parsed, |pod| {
                    (Key { kind, name: pod.name.clone() }, Object::Pod(Arc::new(pod)))
                });
            }
        }
        Ok(())
    }

    fn endpoints(&mut self, object: &core::Endpoints) {
        let Parsed { object, problems } = parse::endpoints(object, self.names);
        self.found.problems.extend(problems);
        // Endpoints without addresses come to no slice, so there is nothing to keep of them.
        let Some(slices) = object else { return };
        let Some(name) = slices.first().map(|slice| slice.service.clone()) else { return };
        let slices = slices.into_iter().map(Arc::new).collect();
        let key = Key { kind: ObjectKind::Endpoints, name };
        self.found.objects.push((key, Object::Slices(slices)));
    }

    fn keep<T>(
        &mut self,
        kind: ObjectKind,
        metadata: &ObjectMeta,
        parsed: Parsed<T>,
        entry: impl FnOnce(T) -> (Key, Object),
    ) {
        if parsed.object.is_none() && !parsed.problems.is_empty() {
            let name = metadata.name.as_deref().unwrap_or_default();
            let key = Key::of(kind, metadata.namespace.as_deref(), name, self.names);
            self.found.broken.push(key);
        }
        self.found.problems.extend(parsed.problems);
        self.found.objects.extend(parsed.object.map(entry));
    }
}

const NO_KIND: &str = "no apiVersion or no kind; give both";

/// Says that the document must be read the slow way.
pub(super) const OUT_OF_ORDER: &str = "apiVersion and kind are not first";

/// Reads a document that did not go the fast way, object by object: its broken ones become
/// problems under their own names. `stopped` is where the fast way stopped, which is at the first
/// broken object.
///
/// # Errors
/// It holds no object at all; says why.
pub(super) fn read_slowly(
    document: Value,
    mut stopped: Option<String>,
    found: &mut Found,
    names: &mut Names,
) -> Result<(), &'static str> {
    let header = header_of(&document);
    let Value::Object(mut map) = document else { return Err("no Kubernetes object") };
    let mut read_one = |item, of_items: &Header, place: &str| {
        read_value(item, of_items, &mut stopped, (&mut *found, &mut *names), place);
    };
    let items = map.get_mut("items").filter(|_| header.is_list()).map(Value::take);
    match items {
        Some(Value::Array(items)) => {
            let of_items = header.of_items();
            for (idx, item) in items.into_iter().enumerate() {
                read_one(item, &of_items, &format!("item {idx}"));
            }
        }
        _ if header.kind.is_none() || header.api_version.is_none() => return Err(NO_KIND),
        _ => read_one(Value::Object(map), &Header::default(), "object"),
    }
    Ok(())
}

fn read_value(
    item: Value,
    of_items: &Header,
    stopped: &mut Option<String>,
    (found, names): (&mut Found, &mut Names),
    place: &str,
) {
    let key = key_of(&item, of_items, names);
    let n_objects = found.objects.len();
    let mut header = header_of(&item);
    header.api_version = header.api_version.or_else(|| of_items.api_version.clone());
    header.kind = header.kind.or_else(|| of_items.kind.clone());
    let Value::Object(mut map) = item else {
        found.problems.push(Problem::new(place, "", "no object; remove it"));
        return;
    };
    map.remove("apiVersion");
    map.remove("kind");
    let mut seed = ObjectSeed { found, names, header: Header::default() };
    let taken = match header.object_kind() {
        Some(kind) => seed.take(kind, Value::Object(map)),
        None if header.kind.is_none() => Err(serde_json::Error::custom("no kind; give one")),
        None => {
            seed.found.n_others += 1;
            Ok(())
        }
    };
    if let Err(error) = taken {
        found.objects.truncate(n_objects);
        let object = key.as_ref().map_or_else(|| place.to_owned(), ToString::to_string);
        let error = stopped.take().unwrap_or_else(|| error.to_string());
        let reason = format!("{error}; the whole object is left out until this is mended");
        found.problems.push(Problem::new(object, "", reason));
        found.broken.extend(key);
    }
}

fn header_of(object: &Value) -> Header {
    let text = |key| object.get(key).and_then(Value::as_str).map(str::to_owned);
    Header { api_version: text("apiVersion"), kind: text("kind") }
}

/// Which object a value claims to be, however broken it is.
fn key_of(object: &Value, of_items: &Header, names: &mut Names) -> Option<Key> {
    let mut header = header_of(object);
    header.api_version = header.api_version.or_else(|| of_items.api_version.clone());
    header.kind = header.kind.or_else(|| of_items.kind.clone());
    let kind = header.object_kind()?;
    let metadata = object.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    let namespace = metadata.get("namespace").and_then(Value::as_str);
    Some(Key::of(kind, namespace, name, names))
}

fn cluster_key(kind: ObjectKind, name: &Arc<str>) -> Key {
    Key { kind, name: NamespacedName { namespace: Arc::from(""), name: Arc::clone(name) } }
}

/// A list's `items`.
struct Items<'a> {
    found: &'a mut Found,
    names: &'a mut Names,
    header: Header,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        loop {
            let item = ObjectSeed {
                found: &mut *self.found,
                names: &mut *self.names,
                header: self.header.clone(),
            };
            if items.next_element_seed(item)?.is_none() {
                return Ok(());
            }
        }
    }
}

/// A map whose first key was already read.
struct Rest<A> {
    first: Option<String>,
    map: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Rest<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        match self.first.take() {
            Some(key) => seed.deserialize(StrDeserializer::new(&key)).map(Some),
            None => self.map.next_key_seed(seed),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// A map without entries.
struct NoMore<E>(std::marker::PhantomData<E>);

impl<'de, E: Error> MapAccess<'de> for NoMore<E> {
    type Error = E;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _: K) -> Result<Option<K::Value>, E> {
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, _: V) -> Result<V::Value, E> {
        Err(E::custom("no value without a key"))
    }
}
