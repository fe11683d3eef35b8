//! Names on huge pages.
//!
//! The names of a large cluster lie all over the heap, and each question leads to others of them. On pages
//! of 4 KiB the processor has to find each page first, on a virtual machine by two walks in one, and
//! at ten thousand Services that was half of what a question costs beyond the kernel's part.
#![expect(unsafe_code, reason = "no safe wrapper has madvise")]

use std::fs;
use std::ops::Range;
use std::ptr::with_exposed_provenance_mut;

/// The smallest huge page.
const HUGE: usize = 2 << 20;

/// Asks the kernel to put the memory that this process has now onto huge pages, where the machine's
/// administrator does not forbid them. Takes milliseconds; changes nothing but speed.
pub(super) fn ask_for_huge_ones() {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if !setting.is_ok_and(|setting| setting.contains("[madvise]") || setting.contains("[always]")) {
        return;
    }
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    for range in maps.lines().filter_map(heap) {
        advise(&range, libc::MADV_HUGEPAGE);
        // At once (Linux 6.1); before that, as the kernel finds time.
        advise(&range, libc::MADV_COLLAPSE);
    }
}

/// The huge pages that a line of `proc_pid_maps(5)` has room for, if it is memory that an allocator has.
fn heap(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let [permissions, _offset, _device, inode] =
        [words.next()?, words.next()?, words.next()?, words.next()?];
    let is_heap =
        permissions == "rw-p" && inode == "0" && matches!(words.next(), None | Some("[heap]"));
    let at = |hex: &str| usize::from_str_radix(hex, 16).ok();
    let range = at(from)?.next_multiple_of(HUGE)..at(to)? / HUGE * HUGE;
    (is_heap && !range.is_empty()).then_some(range)
}

fn advise(range: &Range<usize>, advice: libc::c_int) {
    let start = with_exposed_provenance_mut(range.start);
    // SAFETY: neither advice changes what the memory holds, whoever has it by now.
    let failed = unsafe { libc::madvise(start, range.len(), advice) };
    if failed != 0 {
        tracing::trace!("no huge pages at {range:x?}: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_allocator_has_is_taken_and_whole_pages_of_it() {
        let heap_line = "55d0c7e00000-55d0c8333000 rw-p 00000000 00:00 0                  [heap]";
        assert_eq!(heap(heap_line), Some(0x55d0_c7e0_0000..0x55d0_c820_0000));
        let arena = "7f5a44000000-7f5a44421000 rw-p 00000000 00:00 0 ";
        assert_eq!(heap(arena), Some(0x7f5a_4400_0000..0x7f5a_4440_0000));
        for line in [
            "7ffd0f000000-7ffd0f800000 rw-p 00000000 00:00 0                  [stack]",
            "7f5a48421000-7f5a4c000000 ---p 00000000 00:00 0 ",
            "55d0c7000000-55d0c7e00000 r-xp 00000000 fe:00 1234              /usr/bin/fairlead",
            "7f5a44000000-7f5a44021000 rw-p 00000000 00:00 0 ",
            "",
        ] {
            assert_eq!(heap(line), None, "{line}");
        }
    }

    #[test]
    fn memory_keeps_what_it_holds() {
        let numbers: Vec<u64> = (0..4 << 20).collect();
        ask_for_huge_ones();
        assert!(numbers.iter().copied().eq(0..4 << 20));
    }
}
