//! Frames as they are, sent by a device; and where they end.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg, socket,
};
use sandbox::Launch;
use sandbox::netns::Netns;

/// Frames given to the kernel at once.
const BATCH: usize = 64;

/// The hardware address of a device.
pub(crate) fn mac(netns: &Netns, device: &str) -> [u8; 6] {
    netns.run(|| link_address(device).addr().unwrap()).unwrap()
}

/// The same, for a socket to be bound to.
pub(crate) fn link_address(device: &str) -> LinkAddr {
    let mut all = getifaddrs().unwrap().filter(|it| it.interface_name == device);
    all.find_map(|it| it.address?.as_link_addr().copied()).unwrap()
}

/// A device, by which frames leave.
pub(crate) struct Wire {
    socket: OwnedFd,
    headers: MultiHeaders<LinkAddr>,
}

impl Wire {
    pub(crate) fn new(netns: &Netns, device: &str) -> Self {
        let bound = || {
            let packet = AddressFamily::Packet;
            // Without a protocol it hears nothing.
            let socket = socket(packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
            bind(socket.as_raw_fd(), &link_address(device)).unwrap();
            socket
        };
        Self { socket: netns.run(bound).unwrap(), headers: MultiHeaders::preallocate(BATCH, None) }
    }

    /// Sends them, in order.
    pub(crate) fn send<'f>(&mut self, frames: impl IntoIterator<Item = &'f [u8]>) {
        let slices: Vec<[IoSlice<'_>; 1]> =
            frames.into_iter().map(|frame| [IoSlice::new(frame)]).collect();
        for batch in slices.chunks(BATCH) {
            let mut rest = batch;
            while !rest.is_empty() {
                let to = vec![None; rest.len()];
                let fd = self.socket.as_raw_fd();
                let none = MsgFlags::empty();
                let sent = sendmmsg(fd, &mut self.headers, rest, to, [], none).unwrap();
                rest = rest.get(sent.count()..).unwrap();
            }
        }
    }
}

/// Packets of a protocol end where they come to; `nft` is run there.
pub(crate) fn sink(nft: Launch, name: &str, protocol: &str) {
    let rules = format!(
        "table netdev sink-{protocol} {{
  chain arriving {{
    type filter hook ingress device eth0 priority 0;
    meta protocol ip ip protocol {protocol} drop
  }}
}}
"
    );
    let file = std::env::temp_dir().join(format!("bench-{name}-{protocol}.nft"));
    fs::write(&file, rules).unwrap();
    let output = nft.arg("-f").arg(&file).output().unwrap();
    fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{output:?}");
}
