//! Label and field selectors: parsed once, asked of every object.

use serde_json::Value;

use crate::kinds::Kind;
use crate::object::{Key, Object, at, list_at, str_at};
use crate::status::{Result, Status};

/// Which labels an object must have: every requirement holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LabelSelector(Vec<Requirement>);

/// Which field values an object must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FieldSelector(Vec<(String, bool, String)>);

#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

impl LabelSelector {
    /// Parses the query form: `a=b,c!=d,e in (x,y),!f`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        split_outside_parentheses(text)
            .into_iter()
            .filter(|part| !part.trim().is_empty())
            .map(|part| Requirement::parse(part.trim()))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Reads the object form, with `matchLabels` and `matchExpressions`.
    pub(crate) fn from_value(value: &Value) -> Self {
        let labels = at(value, "matchLabels").as_object().into_iter().flatten().map(|(key, v)| {
            Requirement {
                key: key.clone(),
                test: Test::In(vec![v.as_str().unwrap_or_default().into()]),
            }
        });
        let expressions = list_at(value, "matchExpressions").iter().map(|expression| {
            let values = || {
                let values = list_at(expression, "values");
                values.iter().filter_map(Value::as_str).map(Into::into).collect()
            };
            let test = match str_at(expression, "operator") {
                "In" => Test::In(values()),
                "NotIn" => Test::NotIn(values()),
                "Exists" => Test::Exists,
                _ => Test::DoesNotExist,
            };
            Requirement { key: str_at(expression, "key").into(), test }
        });
        Self(labels.chain(expressions).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one value that a label must have, if it must.
    pub(crate) fn exactly(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|requirement| match &requirement.test {
            Test::In(values) if requirement.key == key && values.len() == 1 => {
                values.first().map(String::as_str)
            }
            _ => None,
        })
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.matches_labels(|key| object.label(key))
    }

    /// Asks the labels of a value that is not stored, a pod template's for one.
    pub(crate) fn matches_value(&self, labels: &Value) -> bool {
        self.matches_labels(|key| labels.get(key).and_then(Value::as_str))
    }

    fn matches_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = label(&requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|v| values.iter().any(|one| one == v)),
                Test::NotIn(values) => !value.is_some_and(|v| values.iter().any(|one| one == v)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
                Test::GreaterThan(bound) => number(value).is_some_and(|n| n > *bound),
                Test::LessThan(bound) => number(value).is_some_and(|n| n < *bound),
            }
        })
    }
}

impl Requirement {
    fn parse(part: &str) -> Result<Self> {
        let bad = || Status::bad_request(format!("unable to parse requirement: {part:?}"));
        let make = |key: &str, test| {
            let key = key.trim().to_owned();
            if is_label_key(&key) { Ok(Self { key, test }) } else { Err(bad()) }
        };
        let one = |value: &str| {
            let value = value.trim().to_owned();
            if is_label_value(&value) { Ok(vec![value]) } else { Err(bad()) }
        };
        if let Some((head, values)) = part.split_once('(') {
            let values = values.trim_end().strip_suffix(')').ok_or_else(bad)?;
            let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
            if !values.iter().all(|value| is_label_value(value)) {
                return Err(bad());
            }
            let (key, operator) = head.trim().split_once(char::is_whitespace).ok_or_else(bad)?;
            return match operator.trim() {
                "in" => make(key, Test::In(values)),
                "notin" => make(key, Test::NotIn(values)),
                _ => Err(bad()),
            };
        }
        if let Some((key, value)) = part.split_once("!=") {
            return make(key, Test::NotIn(one(value)?));
        }
        if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            return make(key, Test::In(one(value)?));
        }
        if let Some((key, value)) = part.split_once('>') {
            return make(key, Test::GreaterThan(value.trim().parse().ok().ok_or_else(bad)?));
        }
        if let Some((key, value)) = part.split_once('<') {
            return make(key, Test::LessThan(value.trim().parse().ok().ok_or_else(bad)?));
        }
        match part.strip_prefix('!') {
            Some(key) => make(key, Test::DoesNotExist),
            None => make(part, Test::Exists),
        }
    }
}

impl FieldSelector {
    /// Parses `path=value,path!=value`, refusing fields that the kind does not select by.
    pub(crate) fn parse(kind: &Kind, text: &str) -> Result<Self> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        let terms = parts.map(|part| {
            let (path, equal, value) = match part.split_once("!=") {
                Some((path, value)) => (path, false, value),
                None => match part.split_once("==").or_else(|| part.split_once('=')) {
                    Some((path, value)) => (path, true, value),
                    None => {
                        return Err(Status::bad_request(format!(
                            "invalid selector: '{text}'; can't understand '{part}'"
                        )));
                    }
                },
            };
            let known = path == "metadata.name"
                || (path == "metadata.namespace" && kind.namespaced)
                || kind.selectable.contains(&path);
            if !known {
                return Err(Status::bad_request(format!("field label not supported: {path}")));
            }
            Ok((path.to_owned(), equal, value.to_owned()))
        });
        terms.collect::<Result<_>>().map(Self)
    }

    pub(crate) fn matches(&self, kind: &Kind, key: &Key, object: &Object) -> bool {
        self.0.iter().all(|(path, equal, value)| {
            (object.field(kind, key, path).unwrap_or_default() == value) == *equal
        })
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth <= 0
    })
    .collect()
}

/// A label's value: at most 63 of `[A-Za-z0-9-_.]`, beginning and ending alphanumeric.
pub(crate) fn is_label_value(value: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(inner)
        && end(value.chars().next())
        && end(value.chars().last())
}

/// A label's key: a name, or a DNS subdomain, a slash and a name.
pub(crate) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty()
        && is_label_value(name)
        && prefix.is_none_or(|p| crate::names::dns_subdomain(p).is_none())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_a_label_requirement_is_understood() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        for (selector, expected) in [
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (api, web),tier notin (back)", true),
            ("!missing,app", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("missing", false),
            ("missing!=x", true),
            ("missing notin (x)", true),
            ("app=", false),
            ("", true),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches_value(&labels), expected, "{selector}");
        }
    }

    #[test]
    fn a_malformed_label_selector_is_refused() {
        for selector in ["a in b", "a in (b", "=b", "a b", "a=-b", "!", "a>x", "a/b/c=d"] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }
}
