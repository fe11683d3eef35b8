//! One node with the companion and its agent, and a kubectl that speaks to them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use sandbox::{Node, Process, Sandbox, wait};
use serde_json::Value;

/// How long anything may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A cluster of one node. Everything ends with it.
pub(crate) struct Cluster {
    kubectl: PathBuf,
    agent: Option<Process>,
    _control: Process,
    pub(crate) node: Node,
    name: String,
    pub(crate) dir: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Cluster {
    /// Starts a companion and an agent; `name` is the sandbox's and the node's.
    pub(crate) fn start(name: &str, kubectl: PathBuf) -> Self {
        let sandbox = Sandbox::create(name).unwrap();
        let node = sandbox.node(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let control = node
            .command(tests::binary::fairlead())
            .args(["control", "--listen", "127.0.0.1:6443", "--data"])
            .arg(dir.path().join("data"))
            .arg("--kubeconfig-out")
            .arg(dir.path().join("kubeconfig"))
            .stderr(fs::File::create(dir.path().join("control.log")).unwrap())
            .spawn()
            .unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        assert!(wait::until(SOON, || kubeconfig.exists()), "the companion does not start");
        let (name, agent) = (name.to_owned(), None);
        let mut cluster =
            Self { kubectl, agent, _control: control, node, name, dir, _sandbox: sandbox };
        cluster.start_agent();
        cluster.until("its node is ready", |c| {
            c.run("get nodes --no-headers").0.contains(" Ready ").then_some(())
        });
        cluster
    }

    pub(crate) fn start_agent(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.log()).unwrap();
        let agent = self
            .node
            .command(tests::binary::fairlead())
            .args(["node", "--run-pods", "--pod-cidr", "10.244.1.0/24,fd00:10:244:1::/64"])
            .args(["--hostname-override", &self.name])
            // Pods on the node's network want port 8080.
            .args(["--health-address=", "--ready-address=", "--metrics-address="])
            .arg("--cgroup")
            .arg(self.node.cgroup())
            .arg("--bpffs")
            .arg(self.node.bpffs().unwrap())
            .arg("--snapshot")
            .arg(self.dir.path().join("names.json"))
            .arg("--root-dir")
            .arg(self.dir.path().join("pods"))
            .arg("--kubeconfig")
            .arg(self.dir.path().join("kubeconfig"))
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(agent);
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    /// SIGKILL: the agent has no time to say good-bye.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
    }

    /// Runs kubectl: what it printed, and whether it succeeded.
    pub(crate) fn run(&self, line: &str) -> (String, bool) {
        let words: Vec<&str> = line.split(' ').collect();
        self.run_words(&words)
    }

    pub(crate) fn run_words(&self, words: &[&str]) -> (String, bool) {
        let output = self
            .node
            .command(&self.kubectl)
            .arg("--kubeconfig")
            .arg(self.dir.path().join("kubeconfig"))
            .arg("--cache-dir")
            .arg(self.dir.path().join("cache"))
            .args(words)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (String::from_utf8_lossy(&text).into_owned(), output.status.success())
    }

    /// Runs kubectl, which must succeed.
    pub(crate) fn ok(&self, line: &str) -> String {
        let (text, well) = self.run(line);
        assert!(well, "{line}: {text}");
        text
    }

    /// Starts kubectl beside everything else.
    pub(crate) fn begin(&self, line: &str) -> Process {
        let kubectl = self.node.command(&self.kubectl);
        let kubectl = kubectl.arg("--kubeconfig").arg(self.dir.path().join("kubeconfig"));
        let out = fs::File::create(self.dir.path().join("begun.log")).unwrap();
        kubectl.args(line.split(' ')).stdout(out).spawn().unwrap()
    }

    /// Applies what a manifest says.
    pub(crate) fn apply(&self, manifest: &str) {
        let file = self.dir.path().join("manifest.yaml");
        fs::write(&file, manifest).unwrap();
        self.ok(&format!("apply -f {}", file.display()));
    }

    /// A pod as the API has it.
    pub(crate) fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("get pod {name} -o json"))).unwrap()
    }

    pub(crate) fn pods(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.ok("get pods -o json")).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until `look` finds what it looks for.
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        wait::value(SOON, || look(self)).unwrap_or_else(|| {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let pods = self.run("get pods -o wide").0;
            let events = self.run("get events").0;
            panic!("not in time: {what}\n{pods}\n{events}\n{log}")
        })
    }

    /// Waits until a pod is ready; gives it.
    pub(crate) fn until_ready(&self, name: &str) -> Value {
        self.until(&format!("{name} is ready"), |c| Some(c.pod(name)).filter(is_ready))
    }

    /// What a program on the node prints.
    pub(crate) fn on_node(&self, words: &[&str]) -> String {
        let (program, args) = words.split_first().unwrap();
        let output = self.node.command(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.agent.take());
        // v1 hierarchies have no cgroup.kill, and the sandbox has none of theirs: what is in them
        // is in the node's v2 cgroup as well.
        let killed = fs::write(self.node.cgroup().join("cgroup.kill"), "1");
        assert!(killed.is_ok() || std::thread::panicking(), "ending the pods: {killed:?}");
        let name = format!("fairlead-{}", self.name);
        wait::until(Duration::from_secs(10), || remove_named("/sys/fs/cgroup", &name));
    }
}

/// Removes the v1 cgroups of a node; whether none is left.
fn remove_named(dir: &str, name: &str) -> bool {
    let mut done = true;
    for controller in ["cpu", "memory", "pids"] {
        let root = PathBuf::from(dir).join(controller);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let inside = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.strip_prefix(controller)?.strip_prefix(':')
        });
        let Some(inside) = inside else { continue };
        let path = root.join(inside.trim_start_matches('/')).join(name);
        done &= sandbox::cgroup::remove(&path).is_ok();
    }
    done
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// Debian's newest kubectl of those that were set up.
pub(crate) fn kubectl() -> PathBuf {
    tests::binary::kubectls().pop().unwrap().1
}
