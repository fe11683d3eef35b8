//! What the memory of many connections costs without any program: the same steps in user space.

use std::hint::black_box;
use std::time::Instant;

use crate::circle::shuffled;

/// Words in a cache line.
const LINE: usize = 8;

/// Something that a packet needs, found only once the thing before it was read.
#[derive(Clone, Copy)]
pub(crate) struct Touch {
    /// Its bytes, which are all read.
    pub(crate) size: usize,
}

/// As many of each thing as there are connections; each tells where the next thing is.
pub(crate) struct Misses {
    layers: Vec<Layer>,
    at: usize,
}

struct Layer {
    words: Vec<u64>,
    size: usize,
}

impl Misses {
    pub(crate) fn new(touches: &[Touch], n: u32) -> Self {
        let n = n as usize;
        let places: Vec<Vec<u32>> = (0..touches.len())
            .map(|layer| rotated(shuffled(n.try_into().unwrap()), layer))
            .collect();
        let layers = touches.iter().enumerate().map(|(layer, touch)| {
            let size = touch.size / 8;
            let mut words = vec![0; size * n + LINE];
            for connection in 0..n {
                let here = places[layer][connection] as usize;
                // The last thing leads to the first of the next connection.
                let next = match places.get(layer + 1) {
                    Some(next) => next[connection],
                    None => places[0][(connection + 1) % n],
                };
                words[here * size] = u64::from(next);
            }
            Layer { words, size }
        });
        let layers = layers.collect();
        Self { layers, at: places[0][0] as usize }
    }

    /// Walks over that many connections: nanoseconds for each.
    #[expect(clippy::cast_possible_truncation, reason = "an index")]
    pub(crate) fn walk(&mut self, n: u32) -> f64 {
        let began = Instant::now();
        let mut at = self.at;
        for _ in 0..n {
            for layer in &self.layers {
                let begin = at * layer.size;
                let lines = (begin..begin + layer.size).step_by(LINE);
                // All but the first word are zero, which the processor cannot know.
                at = lines.map(|word| layer.words[word] as usize).sum();
            }
        }
        self.at = black_box(at);
        began.elapsed().as_secs_f64() * 1e9 / f64::from(n)
    }
}

/// Another order for each layer.
fn rotated(mut order: Vec<u32>, layer: usize) -> Vec<u32> {
    let n = order.len();
    order.rotate_left(layer * 7919 % n);
    order
}
