//! What a Service costs a proxy in memory, by the octet: read from YAML, merged, planned and compared, before any
//! backend. What backends keep besides is measured by `cargo xtask bench sync`.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proxy::backend::fake::Fake;
use proxy::config::NodeConfig;
use proxy::sync::Syncer;
use tests::memory::{self, Counting};
use tests::population;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ENDPOINTS: u32 = 10;

/// What is held once so many Services are programmed, and at most on the way there.
async fn cost(folder: &Path, services: u32) -> [usize; 2] {
    let population: String =
        (0..services).map(|number| population::yaml(number, ENDPOINTS)).collect();
    fs::write(folder.join("population.yaml"), population).unwrap();
    let before = memory::live();
    memory::forget_peak();

    let watch = model::watch::files(folder, "here").unwrap();
    let (mut feed, mut task) = (watch.feed, watch.task);
    let update = tokio::select! {
        update = feed.next() => update.unwrap(),
        () = &mut task => panic!("the source ended"),
    };
    let node = NodeConfig::new("here");
    let mut syncer =
        Syncer::new(Fake::default(), node, Arc::new(|_| Ok(())), Box::new(|_| Ok(()))).unwrap();
    let round = syncer.update(&update).unwrap();
    drop(update);
    assert_eq!(round.plan.frontends.len(), services as usize);
    [memory::live() - before, memory::peak() - before]
}

#[tokio::test]
async fn a_service_of_ten_endpoints_takes_six_kilobytes() {
    let folder = tempfile::tempdir().unwrap();
    let few = cost(folder.path(), 200).await;
    let many = cost(folder.path(), 1_200).await;
    let [held, peak] = [0, 1].map(|at| (many[at] - few[at]) / 1_000);
    println!("a Service of {ENDPOINTS} endpoints: {held} octets, {peak} at most");
    assert!(held <= 6_000, "{held}");
    assert!(peak <= 9_000, "{peak}");
}
