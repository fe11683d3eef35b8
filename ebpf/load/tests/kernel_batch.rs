//! A hash map is read by the batch: all of it, and everything once.

use std::collections::BTreeMap;

use abi::addr::Addr;
use abi::flow::{Record, Tuple};
use load::test_run::Bench;

#[test]
fn every_connection_is_read_once() {
    let mut bench = Bench::open().unwrap();
    let none = bench.entries::<Tuple, Record>("FLOWS").unwrap();
    assert!(none.is_empty());
    // More than one batch has room for.
    let flow = |id| {
        let client = Addr::from_v4(id);
        (Tuple { src: client, ..Tuple::default() }, Record { id, ..Record::default() })
    };
    let mut written = BTreeMap::new();
    for (sent, record) in (0..10_000).map(flow) {
        bench.hash("FLOWS").unwrap().insert(sent, record, 0).unwrap();
        written.insert(sent, record.id);
    }
    let read = bench.entries::<Tuple, Record>("FLOWS").unwrap();
    assert_eq!(read.len(), written.len());
    let read: BTreeMap<_, _> = read.into_iter().map(|(sent, record)| (sent, record.id)).collect();
    assert_eq!(read, written);
}
