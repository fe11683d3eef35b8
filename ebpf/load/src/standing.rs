//! What is pinned, to be compared with what was left there.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::MapData;

use crate::activate;
use crate::pins::{MAPS, Pins};
use crate::sys;

/// The pins of maps and of links to the cgroup, with what each leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    maps: BTreeMap<PathBuf, u32>,
    links: BTreeMap<PathBuf, Link>,
}

/// What a link runs, and where: the inode number of a cgroup, or a device's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    program: u32,
    at: u64,
}

impl Standing {
    /// What stands there now. A pin that is missing, or leads nowhere, is left out.
    pub(crate) fn now(pins: &Pins) -> Self {
        let map = |path: PathBuf| Some((map(&path)?, path)).map(|(id, path)| (path, id));
        let link = |path: PathBuf| Some((link(&path)?, path)).map(|(link, path)| (path, link));
        Self {
            maps: MAPS.into_iter().filter_map(|name| map(pins.map(name))).collect(),
            links: activate::programs().filter_map(|name| link(pins.link(name))).collect(),
        }
    }

    /// What differs from how it was, in words.
    pub(crate) fn difference(&self, was: &Self) -> Option<String> {
        let maps = was.maps.iter().find(|(path, id)| self.maps.get(*path) != Some(*id));
        let links = was.links.iter().find(|(path, link)| self.links.get(*path) != Some(*link));
        let gone = |path: &Path| format!("{} is gone, or is something else", path.display());
        maps.map(|(path, _)| gone(path)).or_else(|| links.map(|(path, _)| gone(path)))
    }
}

/// What a pinned link runs, and where; a link that was detached is nowhere.
pub(crate) fn link(path: &Path) -> Option<Link> {
    let link = sys::object_get(path).ok()?;
    let info = sys::link_info(link.as_fd()).ok()?;
    Some(Link { program: info.program_id, at: info.cgroup_id })
}

fn map(path: &Path) -> Option<u32> {
    MapData::from_pin(path).ok()?.info().ok().map(|info| info.id())
}
