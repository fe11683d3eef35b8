//! The objects of all files together: which file's copy of an object counts, and what changed.
//! No I/O: files' contents come in, changes go out.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::{Change, Kind};
use crate::name::NamespacedName;
use crate::node::Node;
use crate::pod::{Namespace, Pod, SocketLb};
use crate::problem::Problem;
use crate::source::files::document::Contents;
use crate::source::files::object::{Key, Object, ObjectKind};

/// Every file's objects, and what was last said of them.
#[derive(Debug)]
pub(super) struct Folder {
    node_name: Arc<str>,
    files: BTreeMap<Arc<str>, File>,
    /// For each object the files that hold it, in their order: the first one's counts.
    claims: BTreeMap<Key, Vec<Claim>>,
    /// How many objects name a namespace.
    namespaces: BTreeMap<Arc<str>, usize>,
    /// Of each object, what the cluster was told.
    told: BTreeMap<Key, Object>,
}

/// One file's objects and problems.
#[derive(Debug, Default)]
struct File {
    keys: BTreeSet<Key>,
    problems: Vec<Problem>,
    /// The objects of which another file's copy counts, as last told.
    shadowed: BTreeMap<Key, Arc<str>>,
}

#[derive(Debug)]
struct Claim {
    file: Arc<str>,
    object: Object,
}

impl Folder {
    pub(super) fn new(node_name: Arc<str>) -> Self {
        Self {
            node_name,
            files: BTreeMap::new(),
            claims: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// The files that were set.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// What every folder has, also an empty one: a Node of the configured name.
    pub(super) fn made_node(&self) -> Change {
        Change::Node(Arc::new(Node {
            name: Arc::clone(&self.node_name),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            deleting: false,
            to_be_deleted: false,
        }))
    }

    /// A file's contents are these now. What a broken document held before stays, because a
    /// half-saved file must not take Services down.
    pub(super) fn set(&mut self, file: &Arc<str>, contents: Contents, changes: &mut Vec<Change>) {
        let Contents { found, has_unreadable } = contents;
        let mut problems = found.problems;
        let mut now: BTreeMap<Key, Object> = BTreeMap::new();
        for (key, object) in found.objects {
            match now.entry(key) {
                Entry::Vacant(free) => {
                    free.insert(object);
                }
                Entry::Occupied(first) => {
                    let reason = "a second one in this file, and the first one counts; remove one";
                    problems.push(Problem::new(first.key(), "", reason));
                }
            }
        }
        let before = self.files.get(file).map(|file| file.keys.clone()).unwrap_or_default();
        let mut kept = BTreeSet::new();
        for key in &before {
            let broken = has_unreadable || found.broken.contains(key);
            if broken && !now.contains_key(key) {
                kept.insert(key.clone());
            }
        }
        if !kept.is_empty() {
            problems.push(Problem::new("file", "", told_kept(&kept)));
        }
        for key in before.iter().filter(|key| !now.contains_key(key) && !kept.contains(key)) {
            self.unclaim(key, file);
        }
        let mut touched: BTreeSet<Key> = before;
        let mut keys = kept;
        for (key, object) in now {
            self.claim(&key, file, object);
            touched.insert(key.clone());
            keys.insert(key);
        }
        let entry = self.files.entry(Arc::clone(file)).or_default();
        entry.keys = keys;
        entry.shadowed.retain(|key, _| entry.keys.contains(key));
        entry.problems = problems;
        self.tell(file, &touched, changes);
    }

    /// A file cannot be read: what it held stays.
    pub(super) fn unreadable(&mut self, file: &Arc<str>, why: String, changes: &mut Vec<Change>) {
        let entry = self.files.entry(Arc::clone(file)).or_default();
        let mut problems = vec![Problem::new("file", "", why)];
        if !entry.keys.is_empty() {
            problems.push(Problem::new("file", "", told_kept(&entry.keys)));
        }
        entry.problems = problems;
        self.tell(file, &BTreeSet::new(), changes);
    }

    /// A file is gone, and its objects with it.
    pub(super) fn remove(&mut self, file: &Arc<str>, changes: &mut Vec<Change>) {
        let Some(gone) = self.files.remove(file) else { return };
        for key in &gone.keys {
            self.unclaim(key, file);
        }
        self.tell(file, &gone.keys, changes);
    }

    fn claim(&mut self, key: &Key, file: &Arc<str>, object: Object) {
        let claims = self.claims.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
        let place = claims.binary_search_by(|claim| claim.file.cmp(file));
        match place {
            Ok(idx) => {
                if let Some(claim) = claims.get_mut(idx) {
                    claim.object = object;
                }
            }
            Err(idx) => {
                claims.insert(idx, Claim { file: Arc::clone(file), object });
                if let Some(namespace) = namespace_of(key) {
                    *self.namespaces.entry(namespace).or_default() += 1;
                }
            }
        }
    }

    fn unclaim(&mut self, key: &Key, file: &Arc<str>) {
        let Some(claims) = self.claims.get_mut(key) else { return };
        let n_before = claims.len();
        claims.retain(|claim| claim.file != *file);
        let removed = claims.len() < n_before;
        if claims.is_empty() {
            self.claims.remove(key);
        }
        if !removed {
            return;
        }
        if let Some(namespace) = namespace_of(key)
            && let Some(n_objects) = self.namespaces.get_mut(&namespace)
        {
            *n_objects -= 1;
            if *n_objects == 0 {
                self.namespaces.remove(&namespace);
            }
        }
    }

    /// Says what differs now in these objects, their namespaces and the problems of the files
    /// that hold them.
    fn tell(&mut self, file: &Arc<str>, touched: &BTreeSet<Key>, changes: &mut Vec<Change>) {
        let mut files = BTreeSet::from([Arc::clone(file)]);
        for key in touched {
            self.tell_object(key, changes);
            self.tell_namespace(key, changes);
            files.extend(self.shadow(key));
        }
        for file in files {
            changes.push(Change::Problems {
                origin: Arc::clone(&file),
                problems: self
                    .files
                    .get(&file)
                    .map(|entry| in_file(&file, entry.all_problems()))
                    .unwrap_or_default(),
            });
        }
    }

    fn tell_object(&mut self, key: &Key, changes: &mut Vec<Change>) {
        let object = self.claims.get(key).and_then(|claims| claims.first()).map(|c| &c.object);
        let before = self.told.get(key);
        if object == before || key.kind == ObjectKind::Namespace {
            return;
        }
        match object {
            Some(Object::Service(service)) => changes.push(Change::Service(Arc::clone(service))),
            Some(Object::Slices(slices)) => {
                let same = |name: &NamespacedName| slices.iter().any(|slice| slice.name == *name);
                let gone = slice_names(before).filter(|name| !same(name)).cloned();
                changes.extend(gone.map(Change::SliceGone));
                changes.extend(slices.iter().cloned().map(Change::Slice));
            }
            Some(Object::Node(node)) if node.name == self.node_name => {
                changes.push(Change::Node(Arc::clone(node)));
            }
            Some(Object::Pod(pod)) if self.runs(pod) => changes.push(Change::Pod(Arc::clone(pod))),
            Some(Object::Pod(pod)) => changes.push(Change::PodGone(pod.name.clone())),
            Some(Object::Node(_) | Object::Namespace(_)) => {}
            None => match key.kind {
                ObjectKind::Service => changes.push(Change::ServiceGone(key.name.clone())),
                ObjectKind::EndpointSlice | ObjectKind::Endpoints => {
                    changes.extend(slice_names(before).cloned().map(Change::SliceGone));
                }
                ObjectKind::Node if key.name.name == self.node_name => {
                    changes.push(self.made_node());
                }
                ObjectKind::Pod => changes.push(Change::PodGone(key.name.clone())),
                ObjectKind::Node | ObjectKind::Namespace => {}
            },
        }
        match object.cloned() {
            Some(object) => self.told.insert(key.clone(), object),
            None => self.told.remove(key),
        };
    }

    /// Whether this node does.
    fn runs(&self, pod: &Pod) -> bool {
        pod.node_name.as_ref() == Some(&self.node_name)
    }

    /// A namespace exists while an object names it; what it says is in its own, if it has one.
    fn tell_namespace(&mut self, key: &Key, changes: &mut Vec<Change>) {
        let Some(name) = namespace_of(key) else { return };
        let key = Key {
            kind: ObjectKind::Namespace,
            name: NamespacedName { namespace: Arc::from(""), name: Arc::clone(&name) },
        };
        if !self.namespaces.contains_key(&name) {
            if self.told.remove(&key).is_some() {
                changes.push(Change::NamespaceGone(name));
            }
            return;
        }
        let socket_lb = self.said_of_sockets(&key);
        let object = Object::Namespace(socket_lb);
        if self.told.get(&key) != Some(&object) {
            self.told.insert(key, object);
            changes.push(Change::Namespace(Namespace { name, socket_lb }));
        }
    }

    fn said_of_sockets(&self, namespace: &Key) -> Option<SocketLb> {
        match self.claims.get(namespace)?.first()?.object {
            Object::Namespace(said) => said,
            _ => None,
        }
    }

    /// Notes for every file that holds the object whether its copy counts, and says which files'
    /// problems changed by that.
    fn shadow(&mut self, key: &Key) -> Vec<Arc<str>> {
        let claims = self.claims.get(key).map(Vec::as_slice).unwrap_or_default();
        let Some(winner) = claims.first() else { return Vec::new() };
        let mut changed = Vec::new();
        for (idx, claim) in claims.iter().enumerate() {
            let Some(file) = self.files.get_mut(&claim.file) else { continue };
            // Namespaces say little but their name: a copy that says the same is no contradiction.
            let is_same = key.kind == ObjectKind::Namespace && claim.object == winner.object;
            let before = if idx == 0 || is_same {
                file.shadowed.remove(key)
            } else {
                file.shadowed.insert(key.clone(), Arc::clone(&winner.file))
            };
            if before.as_ref() != file.shadowed.get(key) {
                changed.push(Arc::clone(&claim.file));
            }
        }
        changed
    }
}

impl File {
    fn all_problems(&self) -> Vec<Problem> {
        let shadowed = self.shadowed.iter().map(|(key, winner)| {
            Problem::new(key, "", format!("also in {winner}, which counts; remove one of the two"))
        });
        self.problems.iter().cloned().chain(shadowed).collect()
    }
}

/// The kinds' lists, empty ones: what a folder says before anything else.
pub(super) fn lists_begin() -> Vec<Change> {
    Kind::ALL.into_iter().map(Change::ListBegins).collect()
}

/// The end of what [`lists_begin`] begins.
pub(super) fn lists_done() -> Vec<Change> {
    Kind::ALL.into_iter().map(Change::ListDone).collect()
}

fn in_file(file: &Arc<str>, problems: Vec<Problem>) -> Vec<Problem> {
    let place = |problem: Problem| Problem {
        object: format!("{file}: {}", problem.object).into(),
        ..problem
    };
    problems.into_iter().map(place).collect()
}

fn told_kept(kept: &BTreeSet<Key>) -> String {
    let first: Vec<_> = kept.iter().take(3).map(ToString::to_string).collect();
    let more = kept.len().saturating_sub(first.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("what it held before stays as it was: {}{more}", first.join(", "))
}

fn namespace_of(key: &Key) -> Option<Arc<str>> {
    match key.kind {
        ObjectKind::Namespace => Some(Arc::clone(&key.name.name)),
        ObjectKind::Node => None,
        ObjectKind::Service
        | ObjectKind::EndpointSlice
        | ObjectKind::Endpoints
        | ObjectKind::Pod => Some(Arc::clone(&key.name.namespace)),
    }
}

fn slice_names(object: Option<&Object>) -> impl Iterator<Item = &NamespacedName> {
    let slices = match object {
        Some(Object::Slices(slices)) => slices.as_slice(),
        _ => &[],
    };
    slices.iter().map(|slice| &slice.name)
}
