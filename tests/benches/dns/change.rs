//! From a changed endpoint to a changed answer.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use loadtest::ratio::quantile;

use super::client::packet;

const CHANGES: u8 = 200;

/// Moves the one endpoint of a headless Service from address to address, by a file renamed into the
/// folder; how long until the answer has it, in microseconds: the median and the 99th percentile.
pub(crate) fn seen_after(server: SocketAddr, objects: &Path, beside: &Path) -> [f64; 2] {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let question = packet(&["moving", "bench", "svc", "cluster", "local"]);
    let mut answer = [0; 1500];
    let times: Vec<f64> = (1..=CHANGES)
        .map(|host| {
            let file = beside.join("moving.yaml");
            fs::write(&file, yaml(host)).unwrap();
            let changed = Instant::now();
            fs::rename(&file, objects.join("moving.yaml")).unwrap();
            loop {
                socket.send(&question).unwrap();
                let len = socket.recv(&mut answer).unwrap();
                if answer.get(..len).is_some_and(|answer| answer.ends_with(&[10, 255, 0, host])) {
                    break changed.elapsed().as_secs_f64() * 1e6;
                }
                assert!(changed.elapsed() < Duration::from_secs(10), "the change is not seen");
            }
        })
        .collect();
    [quantile(times.iter().copied(), 0.5), quantile(times, 0.99)]
}

fn yaml(host: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: moving, namespace: bench}}\n\
         spec: {{clusterIP: None}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: moving-1, namespace: bench, \
         labels: {{kubernetes.io/service-name: moving}}}}\n\
         addressType: IPv4\nports: []\nendpoints:\n- {{addresses: [10.255.0.{host}]}}\n"
    )
}
