//! Images of the process runtime: built-in programs, and local root directories.

use std::path::{Path, PathBuf};

use super::files::Root;
use crate::built_in;
use crate::image_name::{is_reference, split_tag};
use crate::runtime::ImageError;

/// What an image is: a root, and what to run by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) root: Root,
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) id: String,
}

impl Image {
    /// Finds an image by name: built in, an absolute path, or a directory below `images`.
    pub(super) fn find(name: &str, policy: &str, images: &Path) -> Result<Self, ImageError> {
        let short = name.strip_prefix("docker.io/").unwrap_or(name);
        let (repository, tag) = split_tag(short);
        if let Some(known) = built_in::ALL.into_iter().find(|one| one.name == repository) {
            if !matches!(tag, "" | "latest") {
                return Err(absent(name, "built-in images have the tag latest only"));
            }
            let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
            let version = env!("CARGO_PKG_VERSION");
            return Ok(Self {
                root: Root::BuiltIn,
                entrypoint: words(known.entrypoint),
                command: words(known.command),
                id: format!("{}@{version}", known.name),
            });
        }
        let dir = if name.starts_with('/') {
            PathBuf::from(name)
        } else if is_reference(short) {
            let tag = if tag.is_empty() { "latest" } else { tag };
            images.join(repository.replace('/', "_")).join(tag)
        } else {
            return Err(ImageError::Invalid(name.into()));
        };
        if dir.is_dir() {
            let id = dir.display().to_string();
            return Ok(Self {
                root: Root::Dir(dir),
                entrypoint: vec![],
                command: vec!["/bin/sh".into()],
                id,
            });
        }
        if policy == "Never" {
            return Err(ImageError::NeverPull(name.into()));
        }
        Err(absent(name, &format!("no directory {}", dir.display())))
    }

    /// The command line of a container, as OCI has it: `command` in place of the entry point and
    /// its command, `args` in place of the command.
    pub(super) fn argv(&self, command: &[String], args: &[String]) -> Vec<String> {
        let mut argv = if command.is_empty() { self.entrypoint.clone() } else { command.to_vec() };
        if !args.is_empty() {
            argv.extend_from_slice(args);
        } else if command.is_empty() {
            argv.extend_from_slice(&self.command);
        }
        argv
    }
}

fn absent(name: &str, why: &str) -> ImageError {
    ImageError::Absent(format!("failed to pull and unpack image {name:?}: not found: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_image_is_built_in_or_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("library_box/1.2")).unwrap();
        let find = |name: &str, policy: &str| Image::find(name, policy, dir.path());
        for name in ["fairlead/hello", "docker.io/fairlead/hello:latest"] {
            assert_eq!(find(name, "Always").unwrap().root, Root::BuiltIn);
        }
        let found = find("library/box:1.2", "Always").unwrap();
        assert_eq!(found.root, Root::Dir(dir.path().join("library_box/1.2")));
        assert!(matches!(find("/", "Never").unwrap().root, Root::Dir(_)));
        assert!(matches!(find("fairlead/hello:9", "Always"), Err(ImageError::Absent(_))));
        assert!(matches!(find("nosuch:1", "IfNotPresent"), Err(ImageError::Absent(_))));
        assert!(matches!(find("nosuch:1", "Never"), Err(ImageError::NeverPull(_))));
        for bad in ["", "UPPER", "a b", "../x", "a//b", "a:"] {
            assert!(matches!(find(bad, "Always"), Err(ImageError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn command_and_args_replace_what_the_image_says() {
        let image = Image {
            root: Root::BuiltIn,
            entrypoint: words(&["e"]),
            command: words(&["c"]),
            id: String::new(),
        };
        let argv = |command: &[&str], args: &[&str]| image.argv(&words(command), &words(args));
        assert_eq!(argv(&[], &[]), ["e", "c"]);
        assert_eq!(argv(&[], &["a"]), ["e", "a"]);
        assert_eq!(argv(&["x"], &[]), ["x"]);
        assert_eq!(argv(&["x"], &["a"]), ["x", "a"]);
    }
}
