//! What a name may look like: Kubernetes' few kinds of names, each with upstream's explanation.

/// Lower-case alphanumerics and dashes, at most 63: why `name` is not one.
pub(crate) fn dns_label(name: &str) -> Option<&'static str> {
    let ok = !name.is_empty() && name.len() <= 63 && label_shape(name);
    (!ok).then_some(
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
         and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
         regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
    )
}

/// A Service's name: a DNS label of RFC 1035.
pub(crate) fn dns1035_label(name: &str) -> Option<&'static str> {
    let ok =
        name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_lowercase()) && label_shape(name);
    (!ok).then_some(
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with \
         an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
         'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
    )
}

/// Labels joined by dots, at most 253.
pub(crate) fn dns_subdomain(name: &str) -> Option<&'static str> {
    let ok = !name.is_empty() && name.len() <= 253 && name.split('.').all(label_shape);
    (!ok).then_some(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
         or '.', and must start and end with an alphanumeric character (e.g. 'example.com', \
         regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    )
}

/// A name that only has to be safe as a part of a path (RBAC's).
pub(crate) fn path_segment(name: &str) -> Option<&'static str> {
    match name {
        "." => Some("may not be '.'"),
        ".." => Some("may not be '..'"),
        "" => Some("may not be empty"),
        _ if name.contains('/') => Some("may not contain '/'"),
        _ if name.contains('%') => Some("may not contain '%'"),
        _ => None,
    }
}

/// A port's name: at most 15 lower-case alphanumerics and dashes, with a letter among them.
pub(crate) fn port_name(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 15 {
        return Some("must be no more than 15 characters");
    }
    if !label_shape(name) {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if name.contains("--") {
        return Some("must not contain consecutive hyphens");
    }
    let letter = name.contains(|c: char| c.is_ascii_lowercase());
    (!letter).then_some("must contain at least one letter (a-z)")
}

/// A `ConfigMap`'s or Secret's key.
pub(crate) fn config_key(name: &str) -> Option<&'static str> {
    let shape = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ok = !name.is_empty()
        && name.len() <= 253
        && name.chars().all(shape)
        && name != "."
        && !name.starts_with("..");
    (!ok).then_some(
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
         'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
         '[-._a-zA-Z0-9]+')",
    )
}

fn label_shape(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    label.chars().all(inner) && end(label.chars().next()) && end(label.chars().last())
}
