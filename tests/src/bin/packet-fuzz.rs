//! Random packets through the decision code and through the programs in the kernel; prints where
//! they differ, as a case. Run by `cargo xtask fuzz packets`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to a terminal")]

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tests::packet::fuzz::{Done, Fuzz};
use tests::packet::kernel::alone;

/// How often it says that it lives.
const NEWS: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut numbers = env::args().skip(1).map(|word| word.parse::<u64>());
    let mut number = || numbers.next().and_then(Result::ok);
    let (Some(packets), Some(seed), Some(most)) = (number(), number(), number()) else {
        eprintln!("usage: packet-fuzz PACKETS SEED DIFFERENCES");
        return ExitCode::from(2);
    };
    match alone(|| fuzz(packets, seed, usize::try_from(most).unwrap_or(1))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("packet-fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether there is no difference.
fn fuzz(packets: u64, seed: u64, most: usize) -> Result<bool, load::test_run::TestRunError> {
    println!("seed {seed}: {packets} packets through the decision code and the kernel");
    let (began, mut told) = (Instant::now(), Instant::now());
    let (done, differences) = Fuzz::open()?.run(seed, packets, most, |done: &Done| {
        if told.elapsed() >= NEWS {
            told = Instant::now();
            println!("{} packets", done.packets);
        }
    })?;
    for difference in &differences {
        println!("\n{difference}\n");
    }
    for (verdict, n) in &done.verdicts {
        println!("{n:>10}  {verdict}");
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{} packets in {seconds:.0} s, {} differences", done.packets, differences.len());
    Ok(differences.is_empty())
}
