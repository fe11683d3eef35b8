//! `cargo xtask dist`: a static binary, and an OCI image of it with the programs that its modes run.

mod image;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use self::image::{Image, Layer};
use crate::debian;
use crate::setup::{self, Need, SCRUB};
use crate::step::Step;
use crate::workspace::{Workspace, cargo_home};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where `deploy/` looks for the image once it is imported.
const NAME: &str = "docker.io/library/fairlead:latest";

/// nft, iptables and ipset with the libraries that they need, and the one that a debug build needs besides. The
/// binary that is shipped needs none.
const PROGRAMS: [&str; 20] = [
    "nftables",
    "libnftables1",
    "libnftnl11",
    "libmnl0",
    "libjansson4",
    "libgmp10",
    "libedit2",
    "libtinfo6",
    "libbsd0",
    "libmd0",
    "iptables",
    "libip4tc2",
    "libip6tc2",
    "libxtables12",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "ipset",
    "libipset13",
    "libc6",
    "libgcc-s1",
];

/// What of the packages nobody reads in a container.
const LEFT_OUT: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/lib/x86_64-linux-gnu/gconv",
];

/// Build the static binary and the OCI image
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Dist {
    /// Ship the debug build instead, to try the image out: it takes its
    /// libraries from the image
    #[arg(long)]
    pub(crate) debug: bool,
    /// Ship this binary instead, and build none
    #[arg(long, value_name = "FILE", conflicts_with = "debug")]
    pub(crate) binary: Option<PathBuf>,
    /// Then run the image by containerd and runc as deploy/ says, on a node
    /// of namespaces; as root
    #[arg(long)]
    pub(crate) check: bool,
}

impl Dist {
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None if self.debug => {
                crate::build::Build::default().run(workspace)?;
                workspace.target().join("debug/fairlead")
            }
            None => {
                setup::run(workspace, Need::Build)?;
                crate::build::objects(workspace)?;
                build(workspace)?
            }
        };
        let dist = workspace.target().join("dist");
        fs::create_dir_all(&dist).context("creating target/dist")?;
        let shipped = dist.join("fairlead");
        fs::copy(&binary, &shipped).context("copying the binary")?;
        let archive = dist.join("fairlead-linux-amd64.tar");
        image(workspace, &shipped)?.write(&archive)?;
        let sums = Step::new("sums", "sha256sum").args(["fairlead", "fairlead-linux-amd64.tar"]);
        let sums = sums.dir(&dist).text().context("sha256sum failed")?;
        fs::write(dist.join("SHA256SUMS"), &sums).context("writing SHA256SUMS")?;
        println!("{sums}");
        println!("dist: {} and {}", shipped.display(), archive.display());
        if self.check { check(workspace) } else { Ok(()) }
    }
}

/// The binary, with every library in it. Where it was built is not in it.
fn build(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let (root, home) = (workspace.root().display(), cargo_home());
    let home = home.display();
    workspace
        .cargo("static binary, some minutes")
        .args(["build", "--release", "--target", TARGET, "--package", "fairlead", "--bins"])
        .without_env(SCRUB)
        .without_env(&["FAIRLEAD_EBPF_OBJECT"])
        .env(
            "RUSTFLAGS",
            format!(
                "-Ctarget-feature=+crt-static --remap-path-prefix={root}=/fairlead \
                 --remap-path-prefix={home}=/cargo"
            ),
        )
        .env(
            "CFLAGS",
            format!("-ffile-prefix-map={root}=/fairlead -ffile-prefix-map={home}=/cargo"),
        )
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .show()?;
    Ok(workspace.target().join(TARGET).join("release/fairlead"))
}

fn image(workspace: &Workspace, binary: &Path) -> anyhow::Result<Image> {
    let packages = workspace.target().join("dist/packages");
    let mut programs = Layer::default();
    debian::unpacked_all(&packages, &PROGRAMS)?;
    for package in PROGRAMS {
        programs.add_tree(&packages.join(package), &LEFT_OUT)?;
    }
    // What Debian's alternatives link when a package is installed.
    for family in ["iptables", "ip6tables"] {
        for tool in ["", "-save", "-restore"] {
            programs.add_link(&format!("usr/sbin/{family}{tool}"), "xtables-nft-multi");
        }
    }
    for folder in ["etc", "host", "lib/modules", "proc", "run", "sys", "tmp", "var/lib"] {
        programs.add_folder(folder);
    }
    let mut fairlead = Layer::default();
    fairlead.add_file("usr/bin/fairlead", binary, 0o755);
    Ok(Image {
        name: NAME.to_owned(),
        layers: vec![programs, fairlead],
        entrypoint: "/usr/bin/fairlead".to_owned(),
        path: "/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    })
}

/// Runs what was built.
fn check(workspace: &Workspace) -> anyhow::Result<()> {
    setup::run(workspace, Need::Test)?;
    setup::run(workspace, Need::Image)?;
    crate::build::Build::default().run(workspace)?;
    workspace
        .cargo("the image on a node")
        .args(["nextest", "run", "--package", "tests", "--profile", "image"])
        .show()
}
