//! An image's name: where it is kept, what it is called there, its tag. `[pure]`

/// A name's repository, and its tag, if it has one.
pub(crate) fn split_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, ""),
    }
}

/// Whether a name could be an image's: a repository in lower case, perhaps a tag.
pub(crate) fn is_reference(name: &str) -> bool {
    let (repository, tag) = split_tag(name);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.chars().all(|c| plain(c) || c == ':')
    };
    repository.split('/').all(part)
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !matches!(tag, "." | "..")
        && !name.ends_with(':')
}

/// A name with everything that is left out of it: registry, library and tag.
pub(crate) fn in_full(name: &str) -> String {
    let has_host = name
        .split_once('/')
        .is_some_and(|(host, _)| host == "localhost" || host.contains('.') || host.contains(':'));
    let mut full = match (has_host, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    if split_tag(name).1.is_empty() && !name.contains('@') {
        full.push_str(":latest");
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_leaves_out_is_added() {
        for (name, full) in [
            ("web", "docker.io/library/web:latest"),
            ("shop/web:1", "docker.io/shop/web:1"),
            ("docker.io/shop/web", "docker.io/shop/web:latest"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
            ("registry.k8s.io/pause:3.6", "registry.k8s.io/pause:3.6"),
            ("web@sha256:ab", "docker.io/library/web@sha256:ab"),
        ] {
            assert_eq!(in_full(name), full);
        }
    }
}
