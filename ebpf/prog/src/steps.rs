//! Steps of the decision as functions of their own: global ones, which the verifier follows once each
//! and not once for every way that leads to them.
//!
//! Such a function takes the context, numbers, and pointers that it must find not to be null; it
//! returns a number. The headers of the packet are where [`crate::tc::scratch`] finds them. A pointer that
//! it was handed is no key to Linux 6.1, nor a value: what a map is asked for is copied first, a tuple to
//! a place of the step's own, an address to the stack.

use abi::addr::Addr;
use abi::counter::Counter;
use abi::drop::Dropped;
use abi::flow::{Record, Tuple};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use packet::decide::Verdict;
use packet::live::Live;
use packet::packet::Packet as _;
use packet::parse::Parsed;
use packet::rewrite::End;
use packet::tables::{Choice, Chosen, Found as Destination, Stage};
use packet::{decide, filter, flow, fragment, icmp, parse, quick, refuse, rewrite};

use crate::dns;
use crate::lead;
use crate::maps::{KEYS, copy, count_dropped, count_refused, tell};
use crate::plain;
use crate::skb::{FRAGMENT, Hot, ICMP, SOURCE, Skb, mend_slowly};
use crate::tables::Kernel;
use crate::tc::{quoted, scratch};

/// Words from which on [`step_find`] means a slot.
const FIRST_SLOT: u32 = 3;

/// What a step returns that could not begin: the verifier wants to see the question.
const NOTHING: u32 = 0;

const fn stage_of(word: u32) -> Stage {
    if word == 0 { Stage::Established } else { Stage::New }
}

macro_rules! step {
    ($(#[$doc:meta])* fn $name:ident($ctx:ident; $($number:ident),*; $($pointer:ident: $kind:ident $($place:literal)? $type:ty),*) $body:block) => {
        $(#[$doc])*
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            $ctx: *mut __sk_buff,
            $($number: u32,)*
            $($pointer: step!(@pointer $kind $type),)*
        ) -> u32 {
            $(
                if $pointer.is_null() {
                    return NOTHING;
                }
                step!(@bind $kind $($place)? $pointer);
            )*
            let $ctx = Skb($ctx);
            // The compiler would pass nothing for a context that is not used, and the verifier
            // wants one.
            _ = $ctx.device();
            $body
        }
    };
    (@pointer reference $type:ty) => { *const $type };
    (@pointer key $type:ty) => { *const $type };
    (@pointer copied $type:ty) => { *const $type };
    (@pointer record $type:ty) => { *mut $type };
    (@pointer result $type:ty) => { *mut $type };
    (@bind reference $name:ident) => {
        // SAFETY: not null, and the verifier has checked that it is as long as its type.
        let $name = unsafe { &*$name };
    };
    (@bind key $place:literal $name:ident) => {
        // SAFETY: as above.
        let Some($name) = kept($place, unsafe { &*$name }) else { return NOTHING };
    };
    (@bind copied $name:ident) => {
        // SAFETY: as above.
        let copied = unsafe { *$name };
        let $name = &copied;
    };
    (@bind result $name:ident) => {
        // SAFETY: as above, and the caller's own.
        let $name = unsafe { &mut *$name };
    };
    (@bind record $name:ident) => {
        // SAFETY: a record in a map, as long as the program runs.
        let $name = unsafe { Live::new($name) };
    };
}

/// A tuple at one of those places: steps that call one another have different ones.
#[inline(always)]
fn kept(place: u32, tuple: &Tuple) -> Option<&'static Tuple> {
    let kept = KEYS.get_ptr_mut(place)?;
    // SAFETY: a per-CPU value; the verifier checked the pointer, and no other packet is decided on this
    // processor meanwhile.
    Some(unsafe { &*copy(tuple, kept) })
}

step! {
    /// Replaces one end; 1 if that was done.
    fn step_rewrite(skb; end, port; address: reference Addr) {
        let Some(parsed) = scratch() else { return 0 };
        let end = if end == 0 { End::Source } else { End::Destination };
        #[expect(clippy::cast_possible_truncation, reason = "a port")]
        let port = port as u16;
        if plain::rewrite_parsed(skb, parsed, end, (address, port)).is_some() {
            return 1;
        }
        u32::from(rewrite::rewrite(&mut Skb(skb.0), parsed, end, address, port).is_some())
    }
}

step! {
    /// Finds the ports of a fragment.
    fn step_fragment(skb; leaves; ) {
        let Some(parsed) = scratch() else { return 0 };
        fragment::fragment(&mut Skb(skb.0), &Kernel(skb), parsed, leaves != 0).0
    }
}

step! {
    /// Mends a checksum by the kernel's helpers; 1 if that was done. The flags: zero means that there is
    /// none; a port has
    /// changed; IPv6.
    fn step_mend(skb; offset, address, port, flags; ) {
        let port = (flags & 2 != 0).then_some(port);
        let (optional, v6) = (flags & 1 != 0, flags & 4 != 0);
        u32::from(mend_slowly(skb, offset, (address, port), optional, v6).is_some())
    }
}

step! {
    /// Reads the headers, which do not all lie in place; 1 if there are any.
    fn step_parse(skb; l3; ) {
        let Some(parsed) = scratch() else { return 0 };
        u32::from(parse::parse(&skb, l3, skb.ethertype(), parsed).is_some())
    }
}

step! {
    /// Decides on a packet that arrives, unless it is an ICMP message, of no connection that is known, or
    /// a fragment whose ports are yet to be found.
    fn step_arrives(skb; has_ports; ) {
        let Some(parsed) = scratch() else { return 0 };
        let mut packet = Hot::rare(skb, has_ports != 0);
        decide::arrives_rarely(&mut packet, &Kernel(skb), parsed).0
    }
}

step! {
    /// The same of one that leaves.
    fn step_leaves(skb; has_ports; ) {
        let Some(parsed) = scratch() else { return 0 };
        let mut packet = Hot::rare(skb, has_ports != 0);
        decide::leaves_rarely(&mut packet, &Kernel(skb), parsed, skb.is_made_here()).0
    }
}

step! {
    /// Decides on a question to this node's own DNS server.
    fn step_dns_arrives(skb; ; ) {
        let Some(parsed) = scratch() else { return 0 };
        dns::arrives(skb, parsed).0
    }
}

step! {
    /// The same of an answer.
    fn step_dns_leaves(skb; ; ) {
        let Some(parsed) = scratch() else { return 0 };
        dns::leaves(skb, parsed).0
    }
}

step! {
    /// Sends a packet another way: an action.
    fn step_reroute(skb; ; ) {
        let Some(parsed) = scratch() else { return 0 };
        crate::tc::reroute(skb, parsed).cast_unsigned()
    }
}

step! {
    /// Decides on an ICMP message.
    fn step_icmp(skb; arrives; ) {
        let Some(parsed) = scratch() else { return 0 };
        let tables = Kernel(skb);
        let mut packet = Skb(skb.0);
        let Some(quoted) = quoted() else { return 0 };
        if arrives == 0 {
            icmp::leaves(&mut packet, &tables, parsed, quoted).0
        } else {
            icmp::arrives(&mut packet, &tables, parsed, quoted).0
        }
    }
}

step! {
    /// Decides on a packet of no established connection.
    fn step_to_frontend(skb; here; ) {
        let Some(parsed) = scratch() else { return 0 };
        decide::to_frontend(&mut Skb(skb.0), &Kernel(skb), parsed, here != 0).0
    }
}

step! {
    /// Makes the packet its refusal.
    fn step_refuse(skb; ; ) {
        let Some(parsed) = scratch() else { return 0 };
        refuse::unreachable(&mut Skb(skb.0), &Kernel(skb), parsed).0
    }
}

step! {
    /// Whether the endpoint of a connection serves.
    fn step_still_serves(skb; ; live: record Record) {
        u32::from(flow::still_serves(&Kernel(skb), live))
    }
}

step! {
    /// Removes a connection.
    fn step_forget(skb; stage; live: record Record, sent: key 0 Tuple) {
        flow::forget(&Kernel(skb), stage_of(stage), live, sent);
        NOTHING
    }
}

step! {
    /// Keeps a connection.
    fn step_establish(skb; ; live: record Record, sent: key 0 Tuple) {
        flow::establish(&Kernel(skb), live, sent);
        NOTHING
    }
}

step! {
    /// Renews the names of a connection.
    fn step_renew(skb; ; live: record Record, sent: key 0 Tuple) {
        flow::renew(&Kernel(skb), live, sent);
        NOTHING
    }
}

step! {
    /// Compares a name with its record.
    fn step_compare(skb; ; live: record Record, name: key 0 Tuple, sent: reference Tuple) {
        flow::compare(&Kernel(skb), live, name, sent);
        NOTHING
    }
}

step! {
    /// Opens a connection; zero, or a verdict.
    fn step_open(skb; slot, here; sent: key 0 Tuple, chosen: reference Chosen) {
        word(flow::open(&Kernel(skb), sent, slot, chosen, here != 0))
    }
}

step! {
    /// Finds a source for a connection, and masquerades its packet: a verdict.
    fn step_source(skb; ; ) {
        let (Some(parsed), Some(source)) = (scratch(), quoted()) else { return 0 };
        let port = match decide::find_source(&Kernel(skb), parsed) {
            // Not on the stack, of which nothing is left.
            Ok((address, port)) => {
                source.src = address;
                port
            }
            Err(verdict) => return verdict.0,
        };
        Skb(skb.0).rewritten(parsed, End::Source, &source.src, port).0
    }
}

step! {
    /// What a destination is: [`destination`].
    fn step_find(skb; port, protocol; address: copied Addr) {
        #[expect(clippy::cast_possible_truncation, reason = "a port and a protocol")]
        match lead::find(address, port as u16, protocol as u8) {
            Destination::Stranger => NOTHING,
            Destination::Undefined => 1,
            Destination::Unallocated => 2,
            Destination::Frontend(slot) => slot.wrapping_add(FIRST_SLOT),
        }
    }
}

step! {
    /// Takes a name for a connection; 1 if it got it.
    fn step_claim(skb; stage, forced; name: key 1 Tuple, sent: key 2 Tuple) {
        u32::from(flow::claim(&Kernel(skb), stage_of(stage), name, sent, forced != 0))
    }
}

step! {
    /// Counts a packet that a frontend's Service port has turned away, and tells of a refusal.
    fn step_turned_away(skb; slot, refused; ) {
        let Some(parsed) = scratch() else { return 0 };
        let service = lead::service(slot);
        if refused == 0 {
            count_dropped(service);
        } else {
            count_refused(service);
            tell(told(skb, parsed, Counter::PacketRefused as u32, service));
        }
        NOTHING
    }
}

step! {
    /// Tells of a packet that is dropped.
    fn step_dropped(skb; reason; ) {
        let Some(parsed) = scratch() else { return 0 };
        tell(told(skb, parsed, reason, 0));
        NOTHING
    }
}

/// What is told of a packet; refused if it is for that reason.
#[inline(always)]
fn told(skb: Skb, parsed: &Parsed, reason: u32, service: u32) -> Dropped {
    Dropped {
        // SAFETY: takes nothing, returns a number.
        at: unsafe { bpf_ktime_get_ns() },
        src: parsed.src,
        dst: parsed.dst,
        src_port: parsed.src_port,
        dst_port: parsed.dst_port,
        reason,
        ifindex: skb.device(),
        service,
        protocol: parsed.protocol,
        told: u8::from(reason == Counter::PacketRefused as u32),
        pad: [0; 6],
    }
}

step! {
    /// Chooses an endpoint: a [`lead::Outcome`].
    fn step_choose(skb; slot, here; client: copied Addr, chosen: result Chosen) {
        lead::try_choose(slot, client, skb.device(), here != 0, chosen) as u32
    }
}

fn word(result: Result<(), Verdict>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(verdict) => verdict.0,
    }
}

fn result(word: u32) -> Result<(), Verdict> {
    if word == 0 { Ok(()) } else { Err(Verdict(word)) }
}

#[inline(always)]
pub(crate) fn rewrite(skb: Skb, end: End, address: &Addr, port: u16) -> Option<()> {
    let end = if end == End::Source { 0 } else { 1 };
    (step_rewrite(skb.0, end, u32::from(port), address) != 0).then_some(())
}

#[inline(always)]
pub(crate) fn fragment(skb: Skb, leaves: bool) -> Verdict {
    Verdict(step_fragment(skb.0, u32::from(leaves)))
}

#[inline(always)]
pub(crate) fn mend(
    skb: Skb,
    offset: u32,
    (address, port): (u32, Option<u32>),
    optional: bool,
    v6: bool,
) -> Option<()> {
    let flags = u32::from(optional) | u32::from(port.is_some()) << 1 | u32::from(v6) << 2;
    (step_mend(skb.0, offset, address, port.unwrap_or(0), flags) != 0).then_some(())
}

/// Reads the headers where they lie in place, as most do.
#[inline(always)]
fn parse_in_place(packet: &Hot, l3: u32, parsed: &mut Parsed) -> bool {
    parse::parse_plain(packet, l3, packet.skb.ethertype(), parsed).is_some()
}

#[inline(always)]
pub(crate) fn arrives(skb: Skb, l3: u32) -> Verdict {
    let mut packet = Hot::plain(skb, l3);
    if !filter::may_arrive(&packet, &Kernel(skb), l3, skb.ethertype()) {
        return Verdict::PASS;
    }
    let Some(parsed) = scratch() else { return Verdict::PASS };
    if !parse_in_place(&packet, l3, parsed) && step_parse(skb.0, l3) == 0 {
        return Verdict::PASS;
    }
    if dns::may_ask(parsed) {
        match Verdict(step_dns_arrives(skb.0)) {
            Verdict::UNKNOWN => {}
            verdict => return verdict,
        }
    }
    match quick::arrives(&mut packet, &Kernel(skb), parsed) {
        Verdict::UNKNOWN => {}
        verdict => return verdict,
    }
    let verdict = match Verdict(step_arrives(skb.0, 0)) {
        FRAGMENT => match Verdict(step_fragment(skb.0, 0)) {
            Verdict::ON => Verdict(step_arrives(skb.0, 1)),
            verdict => verdict,
        },
        verdict => verdict,
    };
    match verdict {
        ICMP => Verdict(step_icmp(skb.0, 1)),
        Verdict::UNKNOWN => Verdict(step_to_frontend(skb.0, 0)).before_routing(),
        verdict => verdict,
    }
}

#[inline(always)]
pub(crate) fn leaves(skb: Skb, l3: u32) -> Verdict {
    let mut packet = Hot::plain(skb, l3);
    let made_here = skb.is_made_here();
    if !filter::may_leave(&packet, &Kernel(skb), l3, skb.ethertype(), made_here) {
        return Verdict::PASS;
    }
    let Some(parsed) = scratch() else { return Verdict::PASS };
    if !parse_in_place(&packet, l3, parsed) && step_parse(skb.0, l3) == 0 {
        return Verdict::PASS;
    }
    if skb.is_made_here() && dns::may_answer(parsed) {
        match Verdict(step_dns_leaves(skb.0)) {
            Verdict::UNKNOWN => {}
            verdict => return verdict,
        }
    }
    match quick::leaves(&mut packet, &Kernel(skb), parsed) {
        Verdict::UNKNOWN => {}
        verdict => return verdict,
    }
    let mut verdict = Verdict(step_leaves(skb.0, 0));
    if verdict == FRAGMENT {
        match Verdict(step_fragment(skb.0, 1)) {
            Verdict::ON => {}
            verdict => return verdict,
        }
        verdict = Verdict(step_leaves(skb.0, 1));
    }
    match verdict {
        SOURCE => Verdict(step_source(skb.0)),
        ICMP => Verdict(step_icmp(skb.0, 0)),
        Verdict::UNKNOWN => Verdict(step_to_frontend(skb.0, 1)),
        verdict => verdict,
    }
}

#[inline(always)]
pub(crate) fn reroute(skb: Skb) -> i32 {
    step_reroute(skb.0).cast_signed()
}

#[inline(always)]
pub(crate) fn icmp(skb: Skb, arrives: bool) -> Verdict {
    Verdict(step_icmp(skb.0, u32::from(arrives)))
}

#[inline(always)]
pub(crate) fn to_frontend(skb: Skb, here: bool) -> Verdict {
    Verdict(step_to_frontend(skb.0, u32::from(here)))
}

#[inline(always)]
pub(crate) fn unreachable(skb: Skb) -> Verdict {
    Verdict(step_refuse(skb.0))
}

#[inline(always)]
pub(crate) fn still_serves(kernel: &Kernel, live: Live) -> bool {
    step_still_serves(kernel.0.0, live.as_ptr().cast_mut()) != 0
}

#[inline(always)]
pub(crate) fn forget(kernel: &Kernel, stage: Stage, live: Live, sent: &Tuple) {
    _ = step_forget(kernel.0.0, stage as u32, live.as_ptr().cast_mut(), sent);
}

#[inline(always)]
pub(crate) fn establish(kernel: &Kernel, live: Live, sent: &Tuple) {
    _ = step_establish(kernel.0.0, live.as_ptr().cast_mut(), sent);
}

#[inline(always)]
pub(crate) fn renew(kernel: &Kernel, live: Live, sent: &Tuple) {
    _ = step_renew(kernel.0.0, live.as_ptr().cast_mut(), sent);
}

#[inline(always)]
pub(crate) fn compare(kernel: &Kernel, live: Live, name: &Tuple, sent: &Tuple) {
    _ = step_compare(kernel.0.0, live.as_ptr().cast_mut(), name, sent);
}

#[inline(always)]
pub(crate) fn open(
    kernel: &Kernel,
    sent: &Tuple,
    slot: u32,
    chosen: &Chosen,
    here: bool,
) -> Result<(), Verdict> {
    result(step_open(kernel.0.0, slot, u32::from(here), sent, chosen))
}

#[inline(always)]
pub(crate) fn find(kernel: &Kernel, address: &Addr, port: u16, protocol: u8) -> Destination {
    match step_find(kernel.0.0, u32::from(port), u32::from(protocol), address) {
        NOTHING => Destination::Stranger,
        1 => Destination::Undefined,
        2 => Destination::Unallocated,
        word => Destination::Frontend(word.wrapping_sub(FIRST_SLOT)),
    }
}

#[inline(always)]
pub(crate) fn claim(
    kernel: &Kernel,
    stage: Stage,
    name: &Tuple,
    sent: &Tuple,
    forced: bool,
) -> bool {
    step_claim(kernel.0.0, stage as u32, u32::from(forced), name, sent) != 0
}

#[inline(always)]
pub(crate) fn turned_away(kernel: &Kernel, slot: u32, refused: bool) {
    _ = step_turned_away(kernel.0.0, slot, u32::from(refused));
}

#[inline(always)]
pub(crate) fn dropped(skb: Skb, reason: u32) {
    _ = step_dropped(skb.0, reason);
}

#[inline(always)]
pub(crate) fn choose(kernel: &Kernel, slot: u32, client: &Addr, here: bool) -> Choice {
    let mut chosen = Chosen::default();
    let word = step_choose(kernel.0.0, slot, u32::from(here), client, &raw mut chosen);
    lead::choice(word, chosen)
}
