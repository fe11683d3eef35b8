//! Where file systems are mounted, from `/proc/self/mountinfo` (proc(5)).

use std::path::PathBuf;

/// Where the cgroup v2 hierarchy is mounted, the shortest path first; `None` if nowhere.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts(&text, "cgroup2").min_by_key(|path| path.as_os_str().len())
}

fn mounts<'a>(mountinfo: &'a str, file_system: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    mountinfo.lines().filter_map(move |line| {
        // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some(file_system) {
            return None;
        }
        before.split(' ').nth(4).map(|path| PathBuf::from(unescape(path)))
    })
}

/// Blanks stand as `\040` and the like.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_file_system() {
        let text = "25 1 0:22 / /sys rw - sysfs sysfs rw\n\
                    30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n\
                    31 25 0:27 / /my\\040cgroup rw shared:5 - cgroup2 none rw\n\
                    broken line";
        let found: Vec<_> = mounts(text, "cgroup2").collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/my cgroup")]);
    }
}
