//! Whoever is killed leaves nothing that the next start does not sweep.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{self, Child, Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sandbox::{Sandbox, wait};
use tests::cluster::{SOON, eventually, fairlead};

/// What a sandbox called `name` has outside of a process that owns it.
fn traces(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for dir in ["/run/fairlead", "/run/fairlead/sandbox", "/run/netns"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path().display().to_string();
            if path.contains(name) {
                found.insert(path);
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    found.extend(mounts.filter(|path| path.contains(name)).map(|path| format!("mount {path}")));
    let cgroup = sandbox::cgroup::find_mount().unwrap().join(format!("fairlead-sandbox-{name}"));
    if cgroup.exists() {
        found.insert(cgroup.display().to_string());
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let of = |file| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        let is_in = of("cgroup").contains(&format!("fairlead-sandbox-{name}/"));
        // Who is dead is init's to bury, which takes it a moment.
        if is_in && of("status").lines().any(|it| it.starts_with("State:") && !it.contains('Z')) {
            found.insert(format!("process {}", process.file_name().display()));
        }
    }
    found
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "the programs under test")]
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

#[test]
fn the_next_sandbox_sweeps_what_a_killed_one_left_and_leaves_the_living_alone() {
    let holder = |name: &str| {
        let mut process = command(Path::new(env!("CARGO_BIN_EXE_sandbox-holder")));
        let mut process = process.arg(name).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(!ready.is_empty(), "{name} is held");
        // The process that it holds joins its cgroup a moment after it was started.
        eventually("its process is there", || {
            traces(name).iter().any(|trace| trace.starts_with("process"))
        });
        Killed(process)
    };
    let (dead, alive) = (format!("dead-{}", process::id()), format!("alive-{}", process::id()));
    let (killed, living) = (holder(&dead), holder(&alive));
    drop(killed);
    assert!(traces(&dead).len() >= 4, "record, mount, cgroup, process: {:?}", traces(&dead));
    let of_the_living = traces(&alive);

    let next = Sandbox::create(&format!("next-{}", process::id())).unwrap();
    // Processes are dead by now; that init has buried them, too, takes a moment.
    eventually("nothing is left", || traces(&dead).is_empty());
    assert_eq!(traces(&alive), of_the_living);
    drop(next);
    drop(living);
    Sandbox::sweep().unwrap();
    eventually("nothing is left", || traces(&alive).is_empty());
}

/// The demo under a name of its own: started, and read until it has said all of `words`.
fn demo(name: &str, arguments: &[&str], words: &str) -> Killed {
    let mut demo = command(fairlead().path());
    let mut demo = demo.args(["demo", "--name", name]).args(arguments).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let said = lines.by_ref().map_while(Result::ok).any(|line| line.contains(words));
    assert!(said, "the demo comes to {words:?}");
    // Somebody must go on reading, or the demo stops at a full pipe.
    thread::spawn(move || lines.count());
    Killed(demo)
}

#[test]
fn the_demo_ends_well_and_leaves_nothing() {
    let name = format!("demo-{}", process::id());
    let mut demo = command(fairlead().path());
    let output = demo.args(["demo", "--name", &name]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for words in [
        "serving after",
        "in force after",
        "hello.default.svc.cluster.local",
        "http://172.18.0.1:30080, a node port",
        "the pods see 10.244.1.1, the node",
        "the pods see 172.18.0.2, the client",
        "ratio",
        "has taken its place",
        "0 failed",
        "no request failed",
        "--keep",
    ] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "80 columns:\n{said}");
    assert!(!said.contains('\x1b'), "no colours in a pipe");
    assert_eq!(traces(&name), BTreeSet::new());
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    for (signal, words) in [
        (Signal::SIGINT, "built in"),
        (Signal::SIGTERM, "in sync"),
        (Signal::SIGHUP, "is marked as terminating"),
        (Signal::SIGINT, "demo --stop"),
    ] {
        let name = format!("demo-{}", process::id());
        let Killed(demo) = &mut demo(&name, &["--keep"], words);
        kill(Pid::from_raw(demo.id().try_into().unwrap()), signal).unwrap();
        let ended = wait::value(SOON, || demo.try_wait().unwrap()).expect("it ends");
        assert_eq!(traces(&name), BTreeSet::new(), "{signal} at {words:?}");
        assert_eq!(ended.success(), words == "demo --stop", "{signal} at {words:?}: {ended}");
    }
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_after_the_next_start() {
    for words in ["built in", "is marked as terminating"] {
        let name = format!("demo-{}", process::id());
        drop(demo(&name, &[], words));
        let Killed(next) = &mut demo(&name, &[], "built in");
        let mut stop = command(fairlead().path());
        let stopped = stop.args(["demo", "--stop", "--name", &name]).output().unwrap();
        assert!(stopped.status.success(), "{stopped:?}");
        assert!(!next.wait().unwrap().success(), "it was interrupted");
        eventually("nothing is left", || traces(&name).is_empty());
    }
}

#[test]
fn a_second_demo_says_how_to_end_the_first() {
    let name = format!("demo-{}", process::id());
    let Killed(first) = &mut demo(&name, &["--keep"], "built in");
    let second = command(fairlead().path()).args(["demo", "--name", &name]).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && said.contains("demo --stop"), "{said}");
    kill(Pid::from_raw(first.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    eventually("the first one ends", || first.try_wait().unwrap().is_some());
    assert_eq!(traces(&name), BTreeSet::new());
}
