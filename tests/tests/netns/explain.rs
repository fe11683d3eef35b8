//! `fairlead explain` as a user meets it, beside a proxy that runs: plays `tests/cases/explain`.
//!
//! Sections: `objects.yaml` is the cluster, as the proxy reads it; `proxy starts`, `node starts`,
//! which answers names as well, `proxy is killed`;
//! `asked objects.yaml` is what explain is given from there on instead; `explain FROM TO [more]` is a
//! question, with the answer below. `UPDATE_EXPECT=1` writes the answers into the files.

use std::path::{Path, PathBuf};

use model::name::Family;
use sandbox::manifest::{self, Folder};
use tests::cluster::{Cluster, Node, Web};
use tests::stage;

#[test]
fn explain_answers_what_a_new_user_asks() {
    let mut failures = Vec::new();
    for path in files() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut sections = read(&path);
        let mut play = Play::new();
        for section in &mut sections {
            let Some(answer) = play.step(&section.title, &section.text()) else { continue };
            if answer != section.text() {
                failures.push(format!(
                    "{name}: {}\n--- expected ---\n{}\n--- is ---\n{answer}",
                    section.title,
                    section.text()
                ));
            }
            section.answer(&answer);
        }
        if update() {
            let text: String = sections.iter().map(Section::written).collect();
            std::fs::write(&path, text).unwrap();
        }
    }
    assert!(update() || failures.is_empty(), "{}", failures.join("\n\n"));
}

fn update() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/explain");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "only {files:?}: some cases were not found");
    files
}

/// A title, the lines that matter, and the blank lines and comments that follow them.
struct Section {
    title: String,
    lines: Vec<String>,
    after: Vec<String>,
}

impl Section {
    fn text(&self) -> String {
        self.lines.join("\n")
    }

    fn answer(&mut self, answer: &str) {
        self.lines = answer.lines().map(str::to_owned).collect();
    }

    fn written(&self) -> String {
        let title = (!self.title.is_empty()).then(|| format!("-- {} --", self.title));
        let lines = title.iter().chain(&self.lines).chain(&self.after);
        lines.map(|line| format!("{line}\n")).collect()
    }
}

/// The sections of a file; what stands before the first has no title.
fn read(path: &Path) -> Vec<Section> {
    let mut sections = vec![Section { title: String::new(), lines: vec![], after: vec![] }];
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let title = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --"));
        if let Some(title) = title {
            sections.push(Section { title: title.to_owned(), lines: vec![], after: vec![] });
            continue;
        }
        let section = sections.last_mut().unwrap();
        if section.after.is_empty() && !line.is_empty() && !line.starts_with('#') {
            section.lines.push(line.to_owned());
        } else {
            section.after.push(line.to_owned());
        }
    }
    sections
}

/// A cluster of which explain is asked.
struct Play {
    cluster: Cluster,
    node: Node,
    /// Those of this node that the stage names, so that what is explained is there.
    _pods: Vec<Web>,
    /// The folder that explain is given.
    asked: Folder,
}

impl Play {
    fn new() -> Self {
        let cluster = Cluster::new();
        let node = cluster.node(stage::NODE);
        let pods = node.webs(["a1", "a2"]);
        let asked = cluster.folder().clone();
        Self { cluster, node, _pods: pods, asked }
    }

    /// The answer, if the section is a question.
    fn step(&mut self, title: &str, text: &str) -> Option<String> {
        match title {
            "" => {}
            "objects.yaml" => self.cluster.folder().write("objects", text).unwrap(),
            "asked objects.yaml" => {
                self.asked = Folder::create(&self.cluster.dir().join("asked")).unwrap();
                self.asked.write("node", &manifest::node_yaml(self.node.node())).unwrap();
                self.asked.write("objects", text).unwrap();
            }
            "proxy starts" => self.node.start_proxy_with(&stage::FLAGS[1..]),
            "node starts" => self.node.start_names_with(&stage::FLAGS[1..]),
            "proxy is killed" => self.node.kill_proxy(),
            question => return Some(self.explain(question)),
        }
        None
    }

    fn explain(&self, question: &str) -> String {
        let mut words = question.split(' ');
        assert_eq!(words.next(), Some("explain"), "{question} is no section");
        let (from, to) = (words.next().unwrap(), words.next().unwrap());
        let (to, protocol) = to.rsplit_once('/').unwrap();
        let to = stage::socket(to).unwrap();
        let from = stage::address(from, Family::of(&to.ip())).unwrap();
        let bpffs = self.node.bpffs().display().to_string();
        let asked = self.asked.path().display().to_string();
        let output = self
            .node
            .node()
            .command(self.node.fairlead().path())
            .args(["explain", &from.to_string(), &format!("{to}/{protocol}")])
            .args(["--objects", &asked, "--bpffs", &bpffs])
            .args(stage::FLAGS)
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = self.cluster.folder().path().display().to_string();
        let said = said.replace(&bpffs, "BPFFS").replace(&read, "OBJECTS").replace(&asked, "ASKED");
        said.trim_end().to_owned()
    }
}
