//! `cargo xtask vm`: the same tests on Debian's other kernels, under qemu.
//!
//! ```text
//!  apt-get download ─▶ vmlinuz, modules ─┐
//!  static build ─▶ fairlead, its tests ──┼─▶ initrd ─▶ qemu (TCG) ─▶ console ─▶ exit code
//!  busybox ─▶ shell, init ───────────────┘
//! ```
//!
//! Downloads stay under `target/vm`. The guest has no network and no disk; it powers itself off,
//! and the host ends it when it does not.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::build;
use crate::debian::{entries, file_name, remove_dir, unpacked};
use crate::setup::{self, Need, SCRUB};
use crate::step::Step;
use crate::workspace::Workspace;

/// Debian's kernel for cloud machines: the release, and the package that leads to the newest one.
const KERNELS: &[(&str, &str)] =
    &[("6.1", "linux-image-cloud-amd64"), ("6.12", "linux-image-6.12-cloud-amd64")];

/// What the cloud kernels have as modules, in the order in which they are loaded.
const MODULES: &[&str] = &["llc", "stp", "bridge", "veth", "inet_diag", "tcp_diag", "udp_diag"];

/// What the guest does unless told otherwise: it tells how large the programs are, and plays the
/// tests of ClusterIP Services with real traffic, TCP and UDP, over both families, within a node and
/// across nodes. Left out are the two that send for a few milliseconds only: on an emulated machine
/// the client has hardly begun by then; and what takes packet programs, which 6.1 refuses.
const COMMAND: &str = "sh -c '/bin/deps/kernel_programs --nocapture && \
    /bin/deps/netns --test-threads=1 cluster_ip:: --skip refused --skip by_their_packets'";

/// What it does when it is asked for the programs only.
const PROGRAMS: &str = "/bin/deps/kernel_programs --nocapture";

/// The guest may take this long, on a machine that emulates it.
const LIMIT_SECONDS: &str = "300";

/// The last word of a guest that got to its end.
const END: &str = "FAIRLEAD-VM-EXIT ";

const TARGET: &str = "x86_64-unknown-linux-gnu";

const INIT: &str = include_str!("vm/init.sh");

/// Boot Debian's 6.1 and 6.12 kernels under qemu and test Services there
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Vm {
    /// Only this kernel: 6.1 or 6.12
    #[arg(long, value_parser = ["6.1", "6.12"])]
    kernel: Option<String>,
    /// Only load the programs, and tell how large they are and what verifying them took
    #[arg(long)]
    programs: bool,
    /// More files for the guest's /bin, statically linked
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the guest runs, instead of the tests of ClusterIP Services
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Vm {
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        ensure!(std::env::consts::ARCH == "x86_64", "the kernels are for x86_64 machines");
        setup::run(workspace, Need::Build)?;
        setup::run(workspace, Need::Vm)?;
        let dir = workspace.root().join("target/vm");
        let mut files = static_binaries(workspace, &dir, self.programs)?;
        let more = self.files.iter().map(|file| (file.clone(), format!("bin/{}", file_name(file))));
        files.extend(more);
        let busybox = unpacked(&dir, "busybox-static")?.join("bin/busybox");
        let wanted = |release: &str| self.kernel.as_deref().is_none_or(|it| it == release);
        for (release, package) in KERNELS.iter().filter(|(release, _)| wanted(release)) {
            let guest = Guest::prepare(&dir, release, package)?;
            guest.initrd(&busybox, &files, &self.command())?;
            guest.boot()?;
        }
        Ok(())
    }

    fn command(&self) -> String {
        match &*self.command {
            [] if self.programs => PROGRAMS.to_owned(),
            [] => COMMAND.to_owned(),
            words => words.join(" "),
        }
    }
}

/// A file, and its place in the guest.
type Placed = (PathBuf, String);

/// The binary and its tests without a dynamic linker, stripped, so that they fit the memory; or the one
/// test that takes neither.
fn static_binaries(
    workspace: &Workspace,
    dir: &Path,
    programs_only: bool,
) -> anyhow::Result<Vec<Placed>> {
    build::objects(workspace)?;
    let mut placed = static_tests(workspace, dir, "load", &["kernel_programs"])?;
    if !programs_only {
        static_cargo(workspace, dir, "fairlead", &["build", "--package", "fairlead", "--bins"])
            .show()?;
        placed.extend(static_tests(workspace, dir, "tests", &["netns"])?);
        // Tests look for the binary above the folder that they lie in.
        let binary = dir.join("build").join(TARGET).join("debug/fairlead");
        placed.push((stripped(&binary, &dir.join("fairlead"))?, "bin/fairlead".to_owned()));
    }
    // It is looked for where it was when the test was built.
    let table = workspace.root().join("ebpf/load/tests/programs.txt");
    let place = table.strip_prefix("/").unwrap_or(&table).display().to_string();
    placed.push((table, place));
    Ok(placed)
}

/// Builds tests of a package.
fn static_tests(
    workspace: &Workspace,
    dir: &Path,
    package: &str,
    names: &[&str],
) -> anyhow::Result<Vec<Placed>> {
    let named = names.iter().flat_map(|name| ["--test", name]);
    let args: Vec<&str> =
        ["test", "--package", package, "--no-run"].into_iter().chain(named).collect();
    static_cargo(workspace, dir, "tests", &args).show()?;
    let messages =
        static_cargo(workspace, dir, "tests", &args).args(["--message-format", "json"]).text();
    let messages = messages.context("cargo built no tests")?;
    names
        .iter()
        .map(|name| {
            let test = executable(&messages, name)
                .with_context(|| format!("cargo built no test {name}"))?;
            Ok((stripped(&test, &dir.join(name))?, format!("bin/deps/{name}")))
        })
        .collect()
}

fn static_cargo(workspace: &Workspace, dir: &Path, what: &str, args: &[&str]) -> Step {
    workspace
        .cargo(&format!("{what}, static"))
        .args(args)
        .args(["--target", TARGET])
        .without_env(SCRUB)
        .env("CARGO_TARGET_DIR", dir.join("build"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
}

fn stripped(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    Step::new("strip", "strip").arg("-o").arg(to).arg(from).show()?;
    Ok(to.to_owned())
}

/// The test of that name that cargo's messages tell of; programs that it is to run are built beside it.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = message.get("target")?;
        let kinds = target.get("kind")?.as_array()?;
        if target.get("name")? != name || !kinds.iter().any(|kind| kind == "test") {
            return None;
        }
        message.get("executable")?.as_str().map(PathBuf::from)
    };
    messages.lines().rev().find_map(executable)
}

/// One kernel and what it boots into.
#[derive(Debug)]
struct Guest {
    release: String,
    kernel: PathBuf,
    modules: PathBuf,
    dir: PathBuf,
}

impl Guest {
    fn prepare(dir: &Path, release: &str, package: &str) -> anyhow::Result<Self> {
        let depends = Step::new("kernel", "apt-cache").args(["depends", package]).text();
        let package = depends
            .as_deref()
            .and_then(image)
            .with_context(|| format!("apt knows no {package}: `apt-get update`, then again"))?;
        let root = unpacked(dir, package)?;
        let kernel = entries(&root.join("boot"))?
            .into_iter()
            .find(|path| file_name(path).starts_with("vmlinuz-"))
            .with_context(|| format!("{package} has no kernel"))?;
        let dir = dir.join(release);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { release: release.to_owned(), kernel, modules: root.join("lib/modules"), dir })
    }

    /// Lays out the guest's files and packs them.
    fn initrd(&self, busybox: &Path, files: &[Placed], command: &str) -> anyhow::Result<()> {
        let root = self.dir.join("root");
        remove_dir(&root)?;
        for folder in ["bin/deps", "modules", "proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir_all(root.join(folder)).context("laying out the guest")?;
        }
        install(busybox, &root.join("bin/busybox"))?;
        symlink("busybox", root.join("bin/sh")).context("linking the guest's shell")?;
        for (file, place) in files {
            let to = root.join(place);
            fs::create_dir_all(to.parent().unwrap_or(&root)).context("laying out the guest")?;
            install(file, &to)?;
        }
        for (index, name) in MODULES.iter().enumerate() {
            self.module(name, &root.join(format!("modules/{index}-{name}.ko")))?;
        }
        write_program(&root.join("init"), INIT)?;
        write_program(&root.join("command"), &format!("#!/bin/sh\nexec {command}\n"))?;
        Step::new("initrd", "sh")
            .args(["-c", "cd root && find . | cpio --quiet -o -H newc > ../initrd"])
            .dir(&self.dir)
            .show()
    }

    /// Copies a module; newer kernels ship them compressed.
    fn module(&self, name: &str, to: &Path) -> anyhow::Result<()> {
        let plain = format!("{name}.ko");
        let packed = format!("{name}.ko.xz");
        let found = find(&self.modules, &[&plain, &packed])?
            .with_context(|| format!("Linux {} has no module {name}", self.release))?;
        if !file_name(&found).ends_with(".xz") {
            return install(&found, to);
        }
        Step::new("module", "sh")
            .args(["-c", "exec xz --decompress --stdout \"$0\" > \"$1\""])
            .args([found.as_path(), to])
            .show()
    }

    /// Boots, waits for the guest to power off, and takes its word.
    fn boot(&self) -> anyhow::Result<()> {
        let console = self.dir.join("console.log");
        Step::new(&format!("Linux {} under qemu", self.release), "timeout")
            .args(["--kill-after=5", LIMIT_SECONDS, "qemu-system-x86_64"])
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", "2048", "-nic", "none", "-nographic", "-no-reboot"])
            .args(["-append", "console=ttyS0 panic=-1 nokaslr quiet"])
            .args(["-kernel".as_ref(), self.kernel.as_os_str()])
            .args(["-initrd".as_ref(), self.dir.join("initrd").as_os_str()])
            .remedy(format!("What the guest said: {}", console.display()))
            .watch(&console)?;
        let text = fs::read(&console).context("reading the guest's console")?;
        let text = String::from_utf8_lossy(&text);
        match exit_code(&text) {
            Some(0) => {
                eprintln!("   Linux {}: passed ({})", self.release, console.display());
                Ok(())
            }
            code => {
                eprintln!("{text}");
                let end = code.map_or_else(|| "no end".to_owned(), |it| format!("exit {it}"));
                bail!("Linux {}: {end}; its console: {}", self.release, console.display())
            }
        }
    }
}

/// The kernel's own package in what `apt-cache depends` says of the one that leads to it.
fn image(depends: &str) -> Option<&str> {
    let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-"))
}

/// What the guest's command exited with, if the guest came so far.
fn exit_code(console: &str) -> Option<i32> {
    let word = console.lines().find_map(|line| line.trim().strip_prefix(END))?;
    word.trim().parse().ok()
}

fn find(dir: &Path, names: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    for path in entries(dir)? {
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path, names)? {
                return Ok(Some(found));
            }
        } else if names.contains(&file_name(&path).as_str()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn install(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copying {}", from.display()))
}

fn write_program(path: &Path, text: &str) -> anyhow::Result<()> {
    let writing = || format!("writing {}", path.display());
    fs::write(path, text).with_context(writing)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(writing)
}

#[cfg(test)]
mod tests {
    use super::{executable, exit_code, image};

    #[test]
    fn the_test_is_found_in_what_cargo_says() {
        let artifact = |kind: &str, path: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\
                 \"target\":{{\"name\":\"netns\",\"kind\":[\"{kind}\"]}},\
                 \"executable\":{path}}}\n"
            )
        };
        let library = artifact("lib", "null");
        let test = artifact("test", "\"/t/netns-1\"");
        let program = artifact("bin", "\"/t/names-client\"");
        let messages =
            format!("{library}{test}{program}{{\"reason\":\"build-finished\",\"success\":true}}\n");
        assert_eq!(executable(&messages, "netns").unwrap().to_str(), Some("/t/netns-1"));
        assert_eq!(executable(&messages, "netns_cases"), None);
    }

    #[test]
    fn a_guest_is_taken_at_its_last_word() {
        assert_eq!(exit_code("boot\r\nFAIRLEAD-VM-EXIT 0\r\n"), Some(0));
        assert_eq!(exit_code("FAIRLEAD-VM-EXIT 3\n"), Some(3));
        assert_eq!(exit_code("Kernel panic - not syncing\n"), None);
    }

    #[test]
    fn the_newest_kernel_is_what_the_leading_package_depends_on() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(image(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
    }
}
