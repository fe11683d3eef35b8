//! The trait of what programs the kernel: eBPF, nftables, iptables, IPVS, or tables in memory.
//!
//! ```text
//!             prepare            apply*          activate              drain         retire
//!  (nothing) ────────▶ prepared ───────▶ filled ─────────▶ in charge ───────▶ draining ──────▶ (nothing)
//!                                                    apply* ⟲
//! ```

use std::error::Error;
use std::fmt;
use std::time::Duration;

use thiserror::Error as ThisError;

pub mod ebpf;
pub mod fake;
pub mod held;
pub mod iptables;
pub mod ipvs;
pub mod nftables;
mod program;

use crate::delta::{Actual, Op};
use crate::plan::{Frontend, FrontendKey};

/// Programs the kernel. Synchronous: it runs on a thread of its own.
///
/// What every backend keeps:
///
/// * A new connection sees a frontend, its endpoint set included, as before an operation or as
///   after it, never in between; an operation that fails leaves it as before, or says by its
///   error that it is not known.
/// * Established connections stay where they are, whatever operation comes. Stale UDP flows are
///   somebody else's to end ([`Frontend::serving`] tells which).
/// * The process may die at any instruction: what was applied stays in force, and the next
///   [`Backend::prepare`] finds it.
/// * What [`Backend::supports`] refuses is never handed to [`Backend::apply`].
pub trait Backend: Send {
    /// Its name, as `--proxy-mode` spells it.
    fn name(&self) -> &'static str;

    /// Whether it can do what a frontend asks, all of it. The planner asks before it plans; what
    /// is refused becomes a Problem of the Service.
    ///
    /// # Errors
    /// What it cannot do, naming the Service's field.
    fn supports(&self, frontend: &Frontend) -> Result<(), Unsupported>;

    /// Makes ready: loads programs, opens what a former process left, and reads what the kernel
    /// holds. Attaches nothing: no packet goes another way after it than before. What is found of
    /// a former process stays in force and unchanged. Comes once, and first.
    ///
    /// # Errors
    /// This backend cannot work on this node; the error says why and what to do.
    fn prepare(&mut self) -> Result<Actual, PrepareError>;

    /// Carries operations out, in order. One that fails does not stop those after it, except that
    /// after a fatal error the rest may fail with the same.
    ///
    /// A [`Op::Put`] of what the kernel holds already writes nothing and gives
    /// [`Effect::Unchanged`]: that is how a restart, which knows what is held only as
    /// [`crate::delta::Held::Unknown`], leaves everything in place.
    fn apply(&mut self, ops: &[Op]) -> Applied;

    /// Takes charge: new connections go the way that was applied. Comes after the first full
    /// list was applied. Doing it again changes nothing.
    ///
    /// # Errors
    /// It could not, and nothing is attached that was not before.
    fn activate(&mut self) -> Result<(), ActivateError>;

    /// Hands over: new connections are left to another backend, which is in charge by now;
    /// established ones go on. Says how many there are still; may be asked again and again.
    ///
    /// # Errors
    /// It could not; nothing is lost by trying again.
    fn drain(&mut self) -> Result<Drained, DrainError>;

    /// Removes every trace from the kernel: attachments first, then state. Nothing follows it.
    /// Works after [`Backend::prepare`] alone, to clean up after a former process.
    ///
    /// # Errors
    /// Something could not be removed; the rest was.
    fn retire(&mut self) -> Result<(), RetireError>;

    /// Looks whether the kernel still holds all that was applied. What it holds now, if it is
    /// something else: then what is missing wants to be applied again, and [`Backend::activate`]
    /// follows. A backend whose state nobody else can reach has nothing to look at.
    ///
    /// # Errors
    /// It could not be read.
    fn audit(&mut self) -> Result<Option<Actual>, ReadError> {
        Ok(None)
    }

    /// Reads back what the kernel holds for a frontend, for `fairlead explain` and for audits.
    ///
    /// # Errors
    /// It could not be read.
    fn holds(&mut self, key: &FrontendKey, desired: &Frontend) -> Result<Holds, ReadError>;
}

/// What a backend cannot do.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{field}: {reason}")]
pub struct Unsupported {
    /// The Service's field, as the API spells its path.
    pub field: String,
    /// What cannot be done, and what to do.
    pub reason: String,
}

/// What became of each operation.
#[derive(Debug, Default)]
pub struct Applied {
    /// One for each operation, in their order.
    pub results: Vec<Result<Effect, ApplyError>>,
}

/// What an operation that succeeded did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It wrote.
    Written,
    /// The kernel held it already.
    Unchanged,
}

/// What the kernel holds for a frontend, compared with what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Just that.
    Same,
    /// Something else; the text says what.
    Different(String),
    /// Nothing.
    Nothing,
}

/// How many established flows a backend still carries while it hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Flows that would break if it were retired now; `None` if it cannot tell.
    pub flows: Option<u64>,
}

/// An operation failed.
#[derive(Debug, ThisError)]
#[error("{doing}")]
pub struct ApplyError {
    /// What was being done, with the values needed to act.
    pub doing: String,
    /// What to do about it.
    pub class: ApplyErrorClass,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// What to do about an operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyErrorClass {
    /// Try again after that time: the cause passes.
    Retry {
        /// How long to wait first.
        after: Duration,
    },
    /// Leave it out: trying the same again cannot help. It becomes a Problem of its Service.
    Drop,
    /// This backend cannot work here any more.
    Fatal,
}

macro_rules! operation_error {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, ThisError)]
        #[error("{doing}")]
        pub struct $name {
            /// What was being done, and what to do if that fails.
            pub doing: String,
            /// Why it failed.
            #[source]
            pub source: Option<Box<dyn Error + Send + Sync>>,
        }

        impl $name {
            /// What was being done, and why it failed.
            pub fn new(
                doing: impl fmt::Display,
                source: impl Into<Box<dyn Error + Send + Sync>>,
            ) -> Self {
                Self { doing: doing.to_string(), source: Some(source.into()) }
            }
        }
    };
}

operation_error!(
    /// A backend could not be made ready.
    PrepareError
);
operation_error!(
    /// A backend could not take charge.
    ActivateError
);
operation_error!(
    /// A backend could not hand over.
    DrainError
);
operation_error!(
    /// A backend could not remove all it left in the kernel.
    RetireError
);
operation_error!(
    /// A backend could not read what the kernel holds.
    ReadError
);
