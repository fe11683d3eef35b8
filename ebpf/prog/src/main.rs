//! The eBPF programs: what the kernel runs when a socket of this node names an address.
//!
//! ```text
//!  connect, sendmsg      the address named ─▶ frontend ─▶ set ─▶ endpoint ─▶ the address used
//!                                                                  └─ remembered with the socket
//!  recvmsg, getpeername  the address used ─▶ the address named
//!  bind                  refuse a node port, where that is wanted
//!  sock_release          forget a connected UDP socket
//! ```
//!
//! Entry points only; read `hook`, `choose`, `remember`, then `maps`. In flow: a `bpf_sock_addr`.
//! Out flow: the same, rewritten, or an error for the caller. Nothing here logs unless built with
//! the feature `log`; everything that goes wrong is counted.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)] // one instruction: the atomic addition
#![expect(unsafe_code, reason = "context and map values are raw pointers that the verifier checks")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "naming a field of the context and reading it is one step to the verifier"
)]
#![expect(clippy::needless_pass_by_value, reason = "aya's macros pass the context by value")]

mod choose;
mod dns;
mod hook;
mod itself;
mod lead;
mod log;
mod maps;
mod peer;
mod plain;
mod remember;
mod skb;
mod steps;
mod tables;
mod tc;
mod walk;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext};

use crate::peer::Family;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "connect4");
    hook::connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "connect6");
    hook::connect(&ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "sendmsg4");
    hook::sendmsg(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "sendmsg6");
    hook::sendmsg(&ctx, Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "recvmsg4");
    hook::reverse(&ctx, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "recvmsg6");
    hook::reverse(&ctx, Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "getpeername4");
    hook::reverse(&ctx, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "getpeername6");
    hook::reverse(&ctx, Family::V6)
}

#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "bind4");
    hook::bind(&ctx, Family::V4)
}

#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    log::record!(&ctx, "bind6");
    hook::bind(&ctx, Family::V6)
}

#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    log::record!(&ctx, "sock_release");
    hook::release(&ctx)
}

/// The length of an Ethernet header.
const ETHERNET: u32 = 14;

#[classifier]
fn tc_ingress(ctx: TcContext) -> i32 {
    tc::ingress(ctx.skb.skb, ETHERNET)
}

#[classifier]
fn tc_egress(ctx: TcContext) -> i32 {
    tc::egress(ctx.skb.skb, ETHERNET)
}

/// For devices without a link layer.
#[classifier]
fn tc_ingress_l3(ctx: TcContext) -> i32 {
    tc::ingress(ctx.skb.skb, 0)
}

/// As above.
#[classifier]
fn tc_egress_l3(ctx: TcContext) -> i32 {
    tc::egress(ctx.skb.skb, 0)
}

/// What running a program costs that does nothing: the base of `cargo xtask bench packet`. It is never
/// attached.
#[classifier]
fn tc_nothing(_ctx: TcContext) -> i32 {
    tc::NEXT
}

/// What the memory of a connection costs: another base of it, never attached either.
#[classifier]
fn tc_walk_flows(ctx: TcContext) -> i32 {
    walk::flows(skb::Skb(ctx.skb.skb))
}

/// The same of a connection's name.
#[classifier]
fn tc_walk_names(ctx: TcContext) -> i32 {
    walk::names(skb::Skb(ctx.skb.skb))
}

/// Helpers such as `bpf_sk_storage_get` are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
