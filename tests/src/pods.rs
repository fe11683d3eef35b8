//! Nodes with the companion and their agents, and a kubectl that speaks to them.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use sandbox::{Node, Process, Sandbox, wait};
use serde_json::Value;

use crate::containerd::{self, Containerd};
use crate::pace::Pace;

/// How long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(120);

/// Where the companion takes ranges of pods' addresses from.
const CLUSTER_CIDRS: &str = "--cluster-cidr=10.200.0.0/16,fd00:10:200::/48";

/// A cluster of a node or more. Everything ends with it.
#[derive(Debug)]
pub struct Cluster {
    kubectl: PathBuf,
    agents: Vec<Agent>,
    _control: Process,
    /// The first node, where the companion and kubectl run.
    pub node: Node,
    /// Where everything is kept.
    pub dir: tempfile::TempDir,
    sandbox: Sandbox,
    /// What agents are told besides.
    told: Vec<String>,
}

/// A node and its agent, if that runs.
#[derive(Debug)]
struct Agent {
    node: Node,
    process: Option<Process>,
    /// What runs its pods, if it does not do so itself.
    containerd: Option<Containerd>,
}

impl Cluster {
    /// Starts a companion and an agent; `name` is the sandbox's and the node's.
    pub fn start(name: &str, kubectl: PathBuf) -> Self {
        let mut cluster = Self::companion(name, kubectl, name, &["--listen", "127.0.0.1:6443"]);
        let kubeconfig = cluster.dir.path().join("kubeconfig").display().to_string();
        let ranges = "--pod-cidr=10.200.1.0/24,fd00:10:200:1::/64".to_owned();
        cluster.told = vec!["--kubeconfig".into(), kubeconfig, ranges];
        cluster.join(name);
        cluster
    }

    /// Starts a companion that other nodes reach and that gives them their pods' addresses, and
    /// agents on nodes of these names.
    pub fn start_many(name: &str, kubectl: PathBuf, nodes: &[&str]) -> Self {
        Self::start_many_with(name, kubectl, nodes, &[])
    }

    /// The same with more flags of the companion's.
    pub fn start_many_with(name: &str, kubectl: PathBuf, nodes: &[&str], more: &[&str]) -> Self {
        // The first node of a sandbox has its first address.
        let control = ["--secure", "--listen", "172.18.0.1:6443", CLUSTER_CIDRS];
        let control = [&control[..], more].concat();
        let mut cluster = Self::companion(name, kubectl, nodes[0], &control);
        for node in nodes {
            cluster.join(node);
        }
        cluster
    }

    /// Starts a companion that other nodes join by a token, and agents on two nodes that have only
    /// routers between them, which know no pods. Gives the router, too.
    pub fn start_apart(name: &str, kubectl: PathBuf, nodes: [&str; 2]) -> (Self, Node) {
        let ranges = "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112";
        let control = ["--secure", "--listen", "172.18.0.1:6443", CLUSTER_CIDRS, ranges];
        let mut cluster = Self::companion(name, kubectl, nodes[0], &control);
        let router = cluster.sandbox.node("router").unwrap();
        let second = cluster.sandbox.node(nodes[1]).unwrap();
        set_apart(&router, [&cluster.node, &second]);
        cluster.agents.push(Agent { node: second, process: None, containerd: None });
        cluster.told = cluster.join_words();
        cluster.told.push("--overlay=vxlan".into());
        for node in nodes {
            cluster.join(node);
        }
        (cluster, router)
    }

    fn companion(name: &str, kubectl: PathBuf, first: &str, args: &[&str]) -> Self {
        let sandbox = Sandbox::create(name).unwrap();
        let node = sandbox.node(first).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let join = dir.path().join("join");
        let invites = args.contains(&"--secure").then(|| format!("--join-out={}", join.display()));
        let control = node
            .command(crate::binary::fairlead())
            .args(["control", "--data"])
            .arg(dir.path().join("data"))
            .arg("--kubeconfig-out")
            .arg(&kubeconfig)
            .args(args)
            .args(invites)
            .stderr(fs::File::create(dir.path().join("control.log")).unwrap())
            .spawn()
            .unwrap();
        assert!(wait::until(SOON, || kubeconfig.exists()), "the companion does not start");
        let agents = vec![Agent { node: node.clone(), process: None, containerd: None }];
        let told = vec!["--kubeconfig".into(), kubeconfig.display().to_string()];
        Self { kubectl, agents, _control: control, node, dir, sandbox, told }
    }

    /// The flags by which a node joins, with a token: what the companion has written down.
    pub fn join_words(&self) -> Vec<String> {
        let command = fs::read_to_string(self.dir.path().join("join")).unwrap();
        let words = command.split_whitespace().map(ToOwned::to_owned);
        words.skip_while(|word| word != "--join").collect()
    }

    /// Lets a node join, and waits until it is ready.
    pub fn join(&mut self, name: &str) {
        if !self.agents.iter().any(|agent| agent.node.name() == name) {
            let node = self.sandbox.node(name).unwrap();
            self.agents.push(Agent { node, process: None, containerd: None });
        }
        self.start_agent_of(name);
        let idx = self.idx(name);
        let mut agent = self.agents[idx].process.take().unwrap();
        self.until(&format!("node {name} is ready"), |c| {
            assert!(
                agent.try_wait().unwrap().is_none(),
                "{}",
                fs::read_to_string(c.log()).unwrap()
            );
            let (text, _) = c.run("get nodes --no-headers");
            let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            lines.any(|words| words.starts_with(&[name, "Ready"])).then_some(())
        });
        self.agents[idx].process = Some(agent);
    }

    /// Starts the first node's agent.
    pub fn start_agent(&mut self) {
        let first = self.node.name().to_owned();
        self.start_agent_of(&first);
    }

    /// Starts the agent of a node.
    pub fn start_agent_of(&mut self, name: &str) {
        let idx = self.idx(name);
        let log = fs::File::options().append(true).create(true).open(self.log()).unwrap();
        let file = |what: &str| self.dir.path().join(format!("{what}-{name}"));
        let agent = &mut self.agents[idx];
        if containerd::is_wanted() && agent.containerd.is_none() {
            agent.containerd = Some(Containerd::start(&agent.node, &file("containerd")));
        }
        let runtime = agent.containerd.as_ref().map(Containerd::flags).unwrap_or_default();
        let node = &self.agents[idx].node;
        let process = node
            .command(crate::binary::fairlead())
            .args(["node", "--run-pods", "--hostname-override", name])
            .args(&self.told)
            .args(runtime)
            // Pods on the node's network want port 8080.
            .args(["--health-address=", "--ready-address=", "--metrics-address="])
            .arg("--cgroup")
            .arg(node.cgroup())
            .arg("--bpffs")
            .arg(node.bpffs().unwrap())
            .arg("--snapshot")
            .arg(file("names"))
            .arg("--root-dir")
            .arg(self.root_of(name))
            .stderr(log)
            .spawn()
            .unwrap();
        self.agents[idx].process = Some(process);
    }

    /// The process of the first node's agent.
    pub fn agent_id(&self) -> u32 {
        self.agents[0].process.as_ref().unwrap().id()
    }

    fn idx(&self, name: &str) -> usize {
        self.agents.iter().position(|agent| agent.node.name() == name).unwrap()
    }

    /// A node, by its name.
    pub fn node_of(&self, name: &str) -> &Node {
        &self.agents[self.idx(name)].node
    }

    /// Where a node's agent keeps its pods.
    pub fn root_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("pods-{name}"))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    /// SIGKILL: the agent has no time to say good-bye.
    pub fn kill_agent(&mut self) {
        let first = self.node.name().to_owned();
        self.kill_agent_of(&first);
    }

    /// The same on a node of this name.
    pub fn kill_agent_of(&mut self, name: &str) {
        let idx = self.idx(name);
        self.agents[idx].process.take().unwrap().kill().unwrap();
    }

    /// Switches a machine off: nothing of it runs, and nobody reaches it.
    pub fn switch_off(&mut self, name: &str) {
        self.kill_agent_of(name);
        let idx = self.idx(name);
        let agent = &mut self.agents[idx];
        fs::write(agent.node.cgroup().join("cgroup.kill"), "1").unwrap();
        agent.node.set_connected(false).unwrap();
        agent.containerd = None;
    }

    /// Runs kubectl: what it printed, and whether it succeeded.
    pub fn run(&self, line: &str) -> (String, bool) {
        let words: Vec<&str> = line.split(' ').collect();
        self.run_words(&words)
    }

    /// The same with words that have spaces in them.
    pub fn run_words(&self, words: &[&str]) -> (String, bool) {
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
    pub fn ok(&self, line: &str) -> String {
        let (text, well) = self.run(line);
        assert!(well, "{line}: {text}");
        text
    }

    /// Starts kubectl beside everything else.
    pub fn begin(&self, line: &str) -> Process {
        let kubectl = self.node.command(&self.kubectl);
        let kubectl = kubectl.arg("--kubeconfig").arg(self.dir.path().join("kubeconfig"));
        let out = fs::File::create(self.dir.path().join("begun.log")).unwrap();
        kubectl.args(line.split(' ')).stdout(out).spawn().unwrap()
    }

    /// Applies what a manifest says.
    pub fn apply(&self, manifest: &str) {
        let file = self.dir.path().join("manifest.yaml");
        fs::write(&file, manifest).unwrap();
        self.ok(&format!("apply -f {}", file.display()));
    }

    /// A pod as the API has it.
    pub fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("get pod {name} -o json"))).unwrap()
    }

    /// The pods of the namespace default.
    pub fn pods(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.ok("get pods -o json")).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until `look` finds what it looks for.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        wait::value(Pace::of_this_machine().time(SOON), || look(self)).unwrap_or_else(|| {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let pods = self.run("get pods -o wide").0;
            let events = self.run("get events").0;
            panic!("not in time: {what}\n{pods}\n{events}\n{log}")
        })
    }

    /// Waits until a pod is ready; gives it.
    pub fn until_ready(&self, name: &str) -> Value {
        self.until(&format!("{name} is ready"), |c| c.find("pod", name).filter(is_ready))
    }

    /// What a shell in a pod prints.
    pub fn sh(&self, pod: &str, words: &str) -> String {
        let (text, well) = self.run_words(&["exec", pod, "--", "sh", "-c", words]);
        assert!(well, "{pod}: {words}: {text}");
        text.trim().to_owned()
    }

    /// Waits until a pod's first container runs; gives the pod.
    pub fn until_running(&self, name: &str) -> Value {
        self.until(&format!("{name} runs"), |c| c.find("pod", name).filter(runs))
    }

    /// An object as the API has it, if it does.
    pub fn find(&self, kind: &str, name: &str) -> Option<Value> {
        let (text, well) = self.run(&format!("get {kind} {name} -o json"));
        if well { Some(serde_json::from_str(&text).unwrap()) } else { None }
    }

    /// A machine that is no node of the cluster, beside those that are.
    pub fn outside(&self) -> Node {
        self.sandbox.node("outside").unwrap()
    }

    /// What a program on the node prints.
    pub fn on_node(&self, words: &[&str]) -> String {
        let (program, args) = words.split_first().unwrap();
        let output = self.node.command(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// Leaves nodes on one link no neighbour but a router, which knows the nodes and refuses what is for
/// pods.
fn set_apart(router: &Node, nodes: [&Node; 2]) {
    let run = |node: &Node, script: &str| {
        let output = node.command("sh").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    };
    run(
        router,
        "ip route add unreachable 10.200.0.0/16; ip -6 route add unreachable fd00:10:200::/48
        for link in all eth0; do echo 0 > /proc/sys/net/ipv4/conf/$link/send_redirects; done",
    );
    let [gateway_v4, gateway_v6] = router.addresses().both();
    for node in nodes {
        let [v4, v6] = node.addresses().both();
        run(
            node,
            &format!(
                "ip address flush dev eth0 scope global
                ip address add {v4}/32 dev eth0
                ip address add {v6}/128 dev eth0 nodad
                ip route add {gateway_v4} dev eth0
                ip route add default via {gateway_v4}
                ip route add {gateway_v6} dev eth0
                ip route add default via {gateway_v6}"
            ),
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            drop(agent.process.take());
            // v1 hierarchies have no cgroup.kill, and the sandbox has none of theirs: what is in
            // them is in the node's v2 cgroup as well.
            let killed = fs::write(agent.node.cgroup().join("cgroup.kill"), "1");
            assert!(killed.is_ok() || std::thread::panicking(), "ending the pods: {killed:?}");
            let name = format!("fairlead-{}", agent.node.name());
            wait::until(Duration::from_secs(10), || remove_named("/sys/fs/cgroup", &name));
        }
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

/// Whether a pod is ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn runs(pod: &Value) -> bool {
    !container(pod)["state"]["running"].is_null()
}

/// The status of a pod's first container.
pub fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// A probe that asks the server itself every second; on a busy machine it may take its time.
pub const ASKS: &str = "{httpGet: {port: 8080}, periodSeconds: 1, timeoutSeconds: 30}";

/// A Deployment of servers that are ready while a probe says so; `more` is what else they have.
pub fn probed(name: &str, replicas: usize, probe: &str, more: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 60
      containers:
      - name: hello
        image: fairlead/hello
        readinessProbe: {probe}
        {more}
"
    )
}

/// Debian's newest kubectl of those that were set up.
pub fn kubectl() -> PathBuf {
    crate::binary::kubectls().pop().unwrap().1
}
