//! The maps, as the decision code asks for them: `packet::tables::Tables`.

use core::hint::black_box;

use abi::addr::Addr;
use abi::address::AddressValue;
use abi::counter::Counter;
use abi::endpoint::Head;
use abi::filter::{self, Filter};
use abi::flow::{FragmentKey, Held, HeldKey, Name, Ports, Record, Tuple};
use abi::slot::SERVING;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns};
use packet::decide::Verdict;
use packet::live::{Live, LiveName};
use packet::packet::Packet;
use packet::tables::{Added, Choice, Chosen, Found, Stage, Tables};

use crate::lead;
use crate::maps::{
    ANSWERS, CLOCK, DATAGRAMS, DEVICES, FILTER, FLOWS, HELD, HOLD, NAME, NAMES, NEW_FLOWS,
    NEW_NAMES, RECORD, Read, copy, count, count_endpoint, count_gone, count_served,
};
use crate::skb::{SOURCE, Skb};
use crate::steps;

/// Answers a second and processor: ICMP errors and echo replies, which anybody can ask for.
const ANSWERS_A_SECOND: u64 = 1000;

/// Timer ticks for which the clock's last reading is good enough: 64 ms to 640 ms, as the kernel was
/// built.
const TICKS: u64 = 64;

const EEXIST: i32 = -17;

/// The maps of the kernel, seen from the packet at hand.
pub(crate) struct Kernel(pub(crate) Skb);

impl Tables for Kernel {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "136 years")]
    fn seconds(&self) -> u32 {
        // SAFETY: takes nothing, returns a number. The kernel makes one instruction of it, whereas the
        // clock is a call.
        let ticks = unsafe { bpf_jiffies64() } / TICKS;
        let Some(read) = CLOCK.get_ptr_mut(0) else { return 0 };
        // SAFETY: a per-CPU value; the verifier checked the pointer, and this CPU alone writes it.
        let read = unsafe { &mut *read };
        if read.ticks != ticks {
            // SAFETY: as above.
            let seconds = unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000;
            *read = Read { ticks, seconds };
        }
        read.seconds as u32
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: takes nothing, returns a number.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        count(counter);
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        let Some(bucket) = ANSWERS.get_ptr_mut(0) else { return false };
        // The second in the upper half, the answers given in it in the lower.
        let now = u64::from(self.seconds()) << 32;
        // SAFETY: a per-CPU value; the verifier checked the pointer, and this CPU alone writes it.
        let given = unsafe { *bucket };
        let given = if given & !0xffff_ffff == now { given & 0xffff_ffff } else { 0 };
        if given >= ANSWERS_A_SECOND {
            return false;
        }
        // SAFETY: as above.
        unsafe { *bucket = now | (given + 1) };
        true
    }

    #[inline(always)]
    fn leads(&self) -> bool {
        lead::leads()
    }

    #[inline(always)]
    fn find(&self, address: &Addr, port: u16, protocol: u8) -> Found {
        steps::find(self, address, port, protocol)
    }

    #[inline(always)]
    fn is_cluster_ip(&self, address: &Addr) -> bool {
        lead::flags_of(address) & AddressValue::REJECT != 0
    }

    #[inline(always)]
    fn choose(&self, slot: u32, client: &Addr, here: bool) -> Choice {
        steps::choose(self, slot, client, here)
    }

    #[inline(always)]
    fn generation(&self, slot: u32) -> u32 {
        lead::head(slot, SERVING).map_or(0, Head::generation)
    }

    #[inline(always)]
    fn serves(&self, slot: u32, address: &Addr, port: u16) -> Option<u32> {
        lead::serves(slot, address, port)
    }

    #[inline(always)]
    fn device(&self, v6: bool) -> Option<Addr> {
        let device = DEVICES.get_ptr(self.0.device())?;
        // The verifier takes a boolean in memory for any byte.
        let index = black_box(usize::from(v6)) & 1;
        // SAFETY: the verifier checked the pointer, and the address of IPv6 lies behind that of
        // IPv4. User space replaces the value as a whole, so the worst is the address before or
        // after a change.
        let address = unsafe { (&raw const (*device).v4).add(index).read() };
        (address != Addr::default()).then_some(address)
    }

    #[inline(always)]
    fn note_ports(&self, key: &FragmentKey, ports: &Ports) {
        // An LRU map has room as long as the machine has memory; without the note the later
        // fragments are held until they are displaced.
        _ = DATAGRAMS.insert(key, ports, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn ports(&self, key: &FragmentKey) -> Option<Ports> {
        let noted = DATAGRAMS.get_ptr(key)?;
        // SAFETY: the verifier checked the pointer. An element that is given to another datagram
        // meanwhile is one of a flood's; its fragments are lost anyway.
        Some(unsafe { noted.read_volatile() })
    }

    #[inline(always)]
    fn held(&self, key: &HeldKey) -> Option<(u32, u32)> {
        let held = HELD.get_ptr(key)?;
        // SAFETY: the verifier checked the pointer; as above.
        Some(unsafe {
            ((&raw const (*held).at).read_volatile(), (&raw const (*held).len).read_volatile())
        })
    }

    #[inline(always)]
    fn hold(&self, _packet: &impl Packet, key: &HeldKey, l3: u32, len: u32) -> Added {
        let Some(hold) = HOLD.get_ptr_mut(0) else { return Added::Full };
        // SAFETY: a per-CPU value; the verifier checked the pointer, and no other packet is decided
        // on this processor meanwhile.
        let hold = unsafe { &mut *hold };
        hold.at = self.seconds();
        hold.len = len;
        if !self.0.load_into(l3, len, &raw mut hold.bytes) {
            return Added::Full;
        }
        // A reference, lest it be copied to the stack.
        let hold: &Held = hold;
        added(HELD.insert(key, hold, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn become_held(&self, packet: &mut impl Packet, key: &HeldKey, l3: u32) -> Option<()> {
        let held = HELD.get_ptr(key)?;
        // SAFETY: the verifier checked the pointer.
        let len = unsafe { (&raw const (*held).len).read_volatile() };
        packet.resize(l3.wrapping_add(len))?;
        // SAFETY: as above. Should the element be given to another fragment meanwhile, what is sent
        // is that one's, and its receiver sees that checksums or lengths are wrong.
        self.0.store_from(l3, len, unsafe { &raw const (*held).bytes }).then_some(())
    }

    #[inline(always)]
    fn let_go(&self, key: &HeldKey) {
        // It may be gone already.
        _ = HELD.remove(key);
    }

    #[inline(always)]
    fn is_pod(&self, address: &Addr) -> bool {
        lead::is_pod(address, self.0.device())
    }

    #[inline(always)]
    fn is_ours(&self, address: &Addr) -> bool {
        lead::is_ours(address)
    }

    #[inline(always)]
    fn may_arrive(&self, dst: &Addr) -> bool {
        let Some(filter) = FILTER.get_ptr(0) else { return true };
        let place = filter::address(dst);
        is_of_flow(filter, place)
            || is_of_service(filter, place)
            || is_of_service(filter, filter::block(dst))
            || !is_trusted(filter)
    }

    #[inline(always)]
    fn may_leave(&self, src: &Addr, dst: &Addr, made_here: bool) -> bool {
        let Some(filter) = FILTER.get_ptr(0) else { return true };
        let (from, to) = (filter::address(src), filter::address(dst));
        is_of_flow(filter, to)
            || is_of_flow(filter, from)
            || made_here
                && (is_of_service(filter, to)
                    || is_of_service(filter, filter::block(dst))
                    || is_of_service(filter, from))
            || !is_trusted(filter)
    }

    #[inline(always)]
    fn mark(&self, address: &Addr) {
        let Some(filter) = FILTER.get_ptr_mut(0) else { return };
        let place = filter::address(address).flow();
        // SAFETY: the verifier checked the pointer, and the place is within. Whoever else writes the
        // byte makes it a mark as well.
        unsafe {
            let round = (&raw const (*filter).round).cast::<u8>().read_volatile();
            let mark = (&raw mut (*filter).flows).cast::<u8>().add(place);
            mark.write_volatile(round);
        }
    }

    #[inline(always)]
    fn flow(&self, stage: Stage, sent: &Tuple) -> Option<Live> {
        let record = match stage {
            Stage::Established => FLOWS.get_ptr_mut(sent),
            Stage::New => NEW_FLOWS.get_ptr_mut(sent),
        }?;
        // SAFETY: an element of these maps is a record as long as the program runs.
        Some(unsafe { Live::new(record) })
    }

    #[inline(always)]
    fn add_flow(&self, stage: Stage, sent: &Tuple, record: Live) -> Added {
        let Some(copied) = RECORD.get_ptr_mut(0) else { return Added::Full };
        // SAFETY: a record in a map, and a per-CPU value; the verifier checked the pointers, and no other
        // packet is decided on this processor meanwhile.
        let record = unsafe { &*copy(record.as_ptr(), copied) };
        added(match stage {
            Stage::Established => FLOWS.insert(sent, record, u64::from(BPF_NOEXIST)),
            Stage::New => NEW_FLOWS.insert(sent, record, u64::from(BPF_NOEXIST)),
        })
    }

    #[inline(always)]
    fn remove_flow(&self, stage: Stage, sent: &Tuple) {
        // It may be gone already.
        _ = match stage {
            Stage::Established => FLOWS.remove(sent),
            Stage::New => NEW_FLOWS.remove(sent),
        };
    }

    #[inline(always)]
    fn add_new(&self, sent: &Tuple, fill: impl FnOnce(&mut Record)) -> Added {
        let Some(record) = RECORD.get_ptr_mut(0) else { return Added::Full };
        // SAFETY: a per-CPU value; the verifier checked the pointer, and no other packet is decided
        // on this processor meanwhile.
        let record = unsafe { &mut *record };
        fill(record);
        // A reference, lest the record be copied to the stack.
        let record: &Record = record;
        added(NEW_FLOWS.insert(sent, record, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn named(&self, name: &Tuple) -> Option<LiveName> {
        let known = NAMES.get_ptr_mut(name)?;
        // SAFETY: an element of this map is a name as long as the program runs.
        Some(unsafe { LiveName::new(known) })
    }

    #[inline(always)]
    fn name(&self, stage: Stage, name: &Tuple, sent: &mut Tuple) -> bool {
        let known = match stage {
            // It begins with the key.
            Stage::Established => NAMES.get_ptr(name).map(<*const Name>::cast),
            Stage::New => NEW_NAMES.get_ptr(name),
        };
        let Some(known) = known else { return false };
        let (from, to) = (known.cast::<u64>(), (&raw mut *sent).cast::<u64>());
        for word in 0..size_of::<Tuple>() / size_of::<u64>() {
            // SAFETY: the verifier checked the pointer. A name that is replaced meanwhile leads to a
            // record that does not fit the packet, which the caller sees. By words, because the
            // compiler would call a function that copies byte by byte.
            unsafe { to.add(word).write(from.add(word).read_volatile()) };
        }
        true
    }

    #[inline(always)]
    fn add_name(&self, stage: Stage, name: &Tuple, sent: &Tuple) -> Added {
        added(match stage {
            Stage::Established => {
                let Some(value) = NAME.get_ptr_mut(0) else { return Added::Full };
                // SAFETY: a per-CPU value; the verifier checked the pointer, and no other packet is
                // decided on this processor meanwhile.
                let value = unsafe { &*named(value, sent) };
                NAMES.insert(name, value, u64::from(BPF_NOEXIST))
            }
            Stage::New => NEW_NAMES.insert(name, sent, u64::from(BPF_NOEXIST)),
        })
    }

    #[inline(always)]
    fn add_compared(&self, name: &Tuple, record: Live, sent: &Tuple) -> Added {
        let Some(value) = NAME.get_ptr_mut(0) else { return Added::Full };
        named(value, sent);
        // SAFETY: a per-CPU value; the verifier checked the pointer, and no other packet is decided on this
        // processor meanwhile.
        unsafe { LiveName::new(value) }.compare(record, sent, self.seconds());
        // SAFETY: as above.
        let value = unsafe { &*value.cast_const() };
        added(NAMES.insert(name, value, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn remove_name(&self, stage: Stage, name: &Tuple) {
        // As above.
        _ = match stage {
            Stage::Established => NAMES.remove(name),
            Stage::New => NEW_NAMES.remove(name),
        };
    }

    #[inline(always)]
    fn led(&self, id: u32) {
        count_endpoint(id);
    }

    #[inline(always)]
    fn turned_away(&self, slot: u32, refused: bool) {
        steps::turned_away(self, slot, refused);
    }

    #[inline(always)]
    fn ended(&self, live: Live) {
        let (packets, bytes) = (
            u64::from(live.forward_packets()) + u64::from(live.reply_packets()),
            live.forward_bytes().wrapping_add(live.reply_bytes()),
        );
        // What is open still leads to an endpoint that has gone, whose id may be another's.
        if live.is_closed() {
            count_served(live.id(), packets, bytes);
        } else {
            count_gone(lead::service(live.slot()), packets, bytes);
        }
    }

    #[inline(always)]
    fn still_serves(&self, live: Live) -> bool {
        steps::still_serves(self, live)
    }

    #[inline(always)]
    fn forget(&self, stage: Stage, live: Live, sent: &Tuple) {
        steps::forget(self, stage, live, sent);
    }

    #[inline(always)]
    fn establish(&self, live: Live, sent: &Tuple) {
        steps::establish(self, live, sent);
    }

    #[inline(always)]
    fn renew(&self, live: Live, sent: &Tuple) {
        steps::renew(self, live, sent);
    }

    #[inline(always)]
    fn compare(&self, live: Live, name: &Tuple, sent: &Tuple) {
        steps::compare(self, live, name, sent);
    }

    #[inline(always)]
    fn open(&self, sent: &Tuple, slot: u32, chosen: &Chosen, here: bool) -> Result<(), Verdict> {
        steps::open(self, sent, slot, chosen, here)
    }

    #[inline(always)]
    fn masquerade(&self, _found: packet::flow::Found, _sent: &Tuple) -> Result<(), Verdict> {
        Err(SOURCE)
    }

    #[inline(always)]
    fn claim(&self, stage: Stage, name: &Tuple, sent: &Tuple, forced: bool) -> bool {
        steps::claim(self, stage, name, sent, forced)
    }
}

/// Whether no mark is missing.
#[inline(always)]
fn is_trusted(filter: *const Filter) -> bool {
    // SAFETY: the verifier checked the pointer; one aligned word.
    unsafe { (&raw const (*filter).trusted).read_volatile() != 0 }
}

/// Whether connections may have an address.
#[inline(always)]
fn is_of_flow(filter: *const Filter, place: filter::Place) -> bool {
    // SAFETY: the verifier checked the pointer, and the place is within.
    unsafe { (&raw const (*filter).flows).cast::<u8>().add(place.flow()).read_volatile() != 0 }
}

/// Whether Services may have an address.
#[inline(always)]
fn is_of_service(filter: *const Filter, place: filter::Place) -> bool {
    let (byte, bit) = place.service();
    // SAFETY: as above.
    unsafe {
        (&raw const (*filter).services).cast::<u8>().add(byte).read_volatile() >> bit & 1 != 0
    }
}

/// Writes [`Name::of`] a key there: word by word, because the compiler would call a function for it.
#[inline(always)]
fn named(name: *mut Name, sent: &Tuple) -> *const Name {
    let (from, to) = (core::ptr::from_ref(sent).cast::<u64>(), name.cast::<u64>());
    let of_key = size_of::<Tuple>() / size_of::<u64>();
    for word in 0..size_of::<Name>() / size_of::<u64>() {
        // SAFETY: both are as long as their types, which are made of words.
        unsafe {
            let value = if word < of_key { from.add(word).read() } else { 0 };
            to.add(word).write_volatile(value);
        }
    }
    name
}

#[inline(always)]
fn added(result: Result<(), i32>) -> Added {
    match result {
        Ok(()) => Added::Fresh,
        Err(EEXIST) => Added::Taken,
        Err(_) => Added::Full,
    }
}
