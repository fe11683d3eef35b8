//! Holds a sandbox until it is killed: what is left then is the next one's to sweep.
#![expect(clippy::unwrap_used, reason = "its test reads why it failed")]

use std::{
    env,
    io::{self, Write},
    thread,
};

use sandbox::Sandbox;

fn main() {
    let cluster = Sandbox::create(&env::args().nth(1).unwrap()).unwrap();
    let node = cluster.node("node-a").unwrap();
    let bpffs = node.bpffs().unwrap();
    std::fs::create_dir(bpffs.join("pins")).unwrap();
    let pod = node.pod("web-1").unwrap();
    let process = pod.command("sleep").arg("1000").spawn().unwrap();
    io::stdout().write_all(format!("{}\n", process.id()).as_bytes()).unwrap();
    loop {
        thread::park();
    }
}
