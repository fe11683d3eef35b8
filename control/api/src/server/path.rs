//! What a path names.

use super::query::decode;
use crate::status::{Result, Status};

/// A path, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ApiPath {
    /// Health, version, discovery and what does not exist.
    Plain(Vec<String>),
    /// A question that is asked by creating an object and is not stored.
    Review {
        kind: String,
        namespace: Option<String>,
    },
    Resource(Resource),
}

/// The objects of one kind, or one of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) namespace: Option<String>,
    pub(super) plural: String,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

impl ApiPath {
    pub(super) fn parse(path: &str) -> Result<Self> {
        let segments: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(decode).collect::<Result<_>>()?;
        // A name with a slash or a dot segment in it is a trick, not a name.
        if segments.iter().any(|part| part.contains('/') || part == "." || part == "..") {
            return Err(Status::no_such_path());
        }
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(Self::Plain(segments)),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..]
                if rest.first().is_some_and(|word| !is_namespace_subresource(word)) =>
            {
                (Some(*namespace), rest)
            }
            _ => (None, rest),
        };
        if let [kind] = rest
            && super::review::is_review(group, kind)
        {
            return Ok(Self::Review {
                kind: (*kind).to_owned(),
                namespace: namespace.map(Into::into),
            });
        }
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, None, None),
            [plural, name] => (*plural, Some(*name), None),
            [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
            _ => return Err(Status::no_such_path()),
        };
        Ok(Self::Resource(Resource {
            group: group.into(),
            version: version.into(),
            namespace: namespace.map(Into::into),
            plural: plural.into(),
            name: name.map(Into::into),
            subresource: subresource.map(Into::into),
        }))
    }
}

/// `/api/v1/namespaces/x/status` is about the namespace, not about something in it.
fn is_namespace_subresource(word: &str) -> bool {
    matches!(word, "status" | "finalize")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> Resource {
        match ApiPath::parse(path).unwrap() {
            ApiPath::Resource(resource) => resource,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn every_shape_of_path_is_told_apart() {
        let pod = resource("/api/v1/namespaces/a/pods/b/status");
        assert_eq!(pod.namespace.as_deref(), Some("a"));
        assert_eq!(pod.name.as_deref(), Some("b"));
        assert_eq!(pod.subresource.as_deref(), Some("status"));
        let namespace = resource("/api/v1/namespaces/a/finalize");
        assert_eq!(
            (namespace.plural.as_str(), namespace.name.as_deref()),
            ("namespaces", Some("a"))
        );
        assert_eq!(resource("/apis/apps/v1/deployments").group, "apps");
        assert_eq!(resource("/api/v1/namespaces/a").plural, "namespaces");
        assert!(matches!(ApiPath::parse("/apis/apps/v1").unwrap(), ApiPath::Plain(_)));
    }

    #[test]
    fn tricks_are_refused() {
        for path in
            ["/api/v1/namespaces/a/pods/..", "/api/v1/namespaces/a%2fb/pods", "/api/v1/nodes/%zz"]
        {
            assert!(ApiPath::parse(path).is_err(), "{path}");
        }
    }
}
