//! A guest: a kernel, and the folders that it boots into.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::files::{Placed, find, install};
use super::jobs::Job;
use crate::debian::{entries, file_name, remove_dir, unpacked};
use crate::step::Step;

/// The last word of a guest that got to its end.
const END: &str = "FAIRLEAD-VM-EXIT ";

const INIT: &str = include_str!("init.sh");

/// One kernel, and where its guests are laid out.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) release: &'static str,
    image: PathBuf,
    modules: PathBuf,
    dir: PathBuf,
}

/// What became of a job.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The tests that passed, as the guest counted them.
    pub(super) n_passed: u32,
    /// What it exited with, if it came so far.
    pub(super) exit_code: Option<i32>,
    /// From power on to power off.
    pub(super) took: Duration,
    /// All that it said.
    pub(super) console: PathBuf,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        self.exit_code == Some(0)
    }
}

impl Kernel {
    /// Debian's for cloud machines, the newest of a release.
    pub(super) fn fetch(dir: &Path, release: &'static str) -> anyhow::Result<Self> {
        // Debian's own release has no number in the package that leads to the newest.
        let package = match release {
            "6.1" => "linux-image-cloud-amd64".to_owned(),
            _ => format!("linux-image-{release}-cloud-amd64"),
        };
        let depends = Step::new("kernel", "apt-cache").args(["depends", &package]).text();
        let package = depends
            .as_deref()
            .and_then(newest)
            .with_context(|| format!("apt knows no {package}: `apt-get update`, then again"))?;
        let root = unpacked(dir, package)?;
        let image = entries(&root.join("boot"))?
            .into_iter()
            .find(|path| file_name(path).starts_with("vmlinuz-"))
            .with_context(|| format!("{package} has no kernel"))?;
        let dir = dir.join(release);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { release, image, modules: root.join("lib/modules"), dir })
    }

    /// Does a job in a guest of its own.
    pub(super) fn play(
        &self,
        job: &Job,
        command: &str,
        files: &[Placed],
    ) -> anyhow::Result<Outcome> {
        self.lay_out(job, command, files)?;
        let console = self.dir.join(format!("{}.log", job.name));
        let started = Instant::now();
        // A guest that is ended says so by what it does not say.
        _ = Step::new(&format!("Linux {}, {}", self.release, job.name), "timeout")
            .args(["--kill-after=5", &job.seconds.to_string(), "qemu-system-x86_64"])
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", "2048", "-nic", "none", "-nographic", "-no-reboot"])
            // On a busy machine the kernel counts too few ticks, and takes its timer for broken.
            .args(["-append", "console=ttyS0 panic=-1 nokaslr quiet no_timer_check"])
            .args(["-kernel".as_ref(), self.image.as_os_str()])
            .args(["-initrd".as_ref(), self.dir.join("initrd").as_os_str()])
            .watch(&console);
        let took = started.elapsed();
        let text = fs::read(&console).context("reading the guest's console")?;
        let text = String::from_utf8_lossy(&text);
        Ok(Outcome { n_passed: n_passed(&text), exit_code: exit_code(&text), took, console })
    }

    /// Puts the guest's files where it finds them, and packs them.
    fn lay_out(&self, job: &Job, command: &str, files: &[Placed]) -> anyhow::Result<()> {
        let root = self.dir.join("root");
        remove_dir(&root)?;
        for folder in ["bin", "mnt", "modules", "proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir_all(root.join(folder)).context("laying out the guest")?;
        }
        for (file, place) in files {
            install(file, &root.join(place))?;
        }
        if !root.join("bin/sh").exists() {
            symlink("busybox", root.join("bin/sh")).context("linking the guest's shell")?;
        }
        let mut loaded = BTreeSet::new();
        for name in job.modules {
            self.module(name, &root.join("modules"), &mut loaded)?;
        }
        write_program(&root.join("init"), INIT)?;
        write_program(&root.join("command"), &format!("#!/bin/sh\n{command}\n"))?;
        Step::new("initrd", "sh")
            .args(["-c", "cd root && find . | cpio --quiet -o -H newc > ../initrd"])
            .dir(&self.dir)
            .show()
    }

    /// Puts a module behind those that it needs, in the order in which they are to be loaded.
    fn module(
        &self,
        name: &str,
        folder: &Path,
        loaded: &mut BTreeSet<String>,
    ) -> anyhow::Result<()> {
        // The two are the same in a module's name.
        let name = name.replace('-', "_");
        if !loaded.insert(name.clone()) {
            return Ok(());
        }
        let names = [name.clone(), name.replace('_', "-")];
        let names = names.iter().flat_map(|it| [format!("{it}.ko"), format!("{it}.ko.xz")]);
        let names: Vec<String> = names.collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = find(&self.modules, &names)?
            .with_context(|| format!("Linux {} has no module {name}", self.release))?;
        let plain = self.dir.join("module.ko");
        unpack(&found, &plain)?;
        let bytes = fs::read(&plain).with_context(|| format!("reading {}", plain.display()))?;
        for needed in needed(&bytes) {
            self.module(&needed, folder, loaded)?;
        }
        let n_before = entries(folder)?.len();
        unpack(&found, &folder.join(format!("{n_before:03}-{name}.ko")))
    }
}

/// Copies a module; newer kernels ship them compressed.
fn unpack(module: &Path, to: &Path) -> anyhow::Result<()> {
    if !file_name(module).ends_with(".xz") {
        return install(module, to);
    }
    Step::new("module", "sh")
        .args(["-c", "exec xz --decompress --stdout \"$0\" > \"$1\""])
        .args([module, to])
        .show()
}

/// What a module says that it needs.
fn needed(module: &[u8]) -> Vec<String> {
    const WORD: &[u8] = b"depends=";
    let mut strings = module.split(|byte| *byte == 0);
    let depends = strings.find_map(|string| string.strip_prefix(WORD)).unwrap_or_default();
    let names = depends.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// The kernel's own package in what `apt-cache depends` says of the one that leads to it.
fn newest(depends: &str) -> Option<&str> {
    let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-"))
}

/// What the guest's command exited with, if the guest came so far.
fn exit_code(console: &str) -> Option<i32> {
    let word = console.lines().find_map(|line| line.trim().strip_prefix(END))?;
    word.trim().parse().ok()
}

/// What the tests' own last words add up to.
fn n_passed(console: &str) -> u32 {
    let results = console.lines().filter_map(|line| line.trim().strip_prefix("test result: "));
    let passed = results.filter_map(|result| {
        let (before, _) = result.split_once(" passed")?;
        before.rsplit(' ').next()?.parse::<u32>().ok()
    });
    passed.sum()
}

fn write_program(path: &Path, text: &str) -> anyhow::Result<()> {
    let writing = || format!("writing {}", path.display());
    fs::write(path, text).with_context(writing)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(writing)
}

#[cfg(test)]
mod tests {
    use super::{exit_code, n_passed, needed, newest};

    #[test]
    fn a_guest_is_taken_at_its_last_word() {
        assert_eq!(exit_code("boot\r\nFAIRLEAD-VM-EXIT 0\r\n"), Some(0));
        assert_eq!(exit_code("FAIRLEAD-VM-EXIT 3\n"), Some(3));
        assert_eq!(exit_code("Kernel panic - not syncing\n"), None);
    }

    #[test]
    fn the_tests_that_passed_are_added_up() {
        let console = "test result: ok. 9 passed; 0 failed; 0 ignored\r\nother words\r\n\
                       test result: FAILED. 5 passed; 1 failed; 0 ignored\r\n";
        assert_eq!(n_passed(console), 14);
        assert_eq!(n_passed("Kernel panic"), 0);
    }

    #[test]
    fn a_module_tells_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=nf_conntrack,libcrc32c\0name=ip_vs\0";
        assert_eq!(needed(module), ["nf_conntrack", "libcrc32c"]);
        assert!(needed(b"\x7fELF\0depends=\0name=veth\0").is_empty());
    }

    #[test]
    fn the_newest_kernel_is_what_the_leading_package_depends_on() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(newest(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
    }
}
