//! Reads hash maps by the batch: a system call for thousands of entries, where asking for each takes two
//! of them. Buckets are copied whole, so an entry that stays is met once, whatever comes and goes meanwhile.

use std::io;
use std::os::fd::AsFd as _;

use aya::Pod;
use aya::maps::{IterableMap, MapError};

use crate::sys;

/// Entries asked for at once, at first.
const ENTRIES: usize = 4096;
/// The most: no bucket has so many.
const MOST: usize = ENTRIES << 8;

/// Shows every entry of a hash map.
///
/// # Errors
/// The kernel does not let it be read.
pub(crate) fn each<K: Pod + Default, V: Pod + Default>(
    map: &impl IterableMap<K, V>,
    mut show: impl FnMut(K, V),
) -> Result<(), MapError> {
    let map = map.map().fd().as_fd();
    let (mut keys, mut values) = room(ENTRIES);
    let mut bucket = None;
    loop {
        match sys::lookup_batch(map, bucket, &mut keys, &mut values) {
            Ok(found) => {
                let entries = keys.iter().zip(&values).take(found.n);
                entries.for_each(|(key, value)| show(*key, *value));
                match found.next {
                    Some(next) => bucket = Some(next),
                    None => return Ok(()),
                }
            }
            Err(error) if is_too_small(&error) && keys.len() < MOST => {
                (keys, values) = room(keys.len() * 2);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn room<K: Pod + Default, V: Pod + Default>(n: usize) -> (Vec<K>, Vec<V>) {
    (vec![K::default(); n], vec![V::default(); n])
}

/// A bucket has more entries than there is room.
fn is_too_small(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}
