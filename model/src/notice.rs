//! What an object's owner is told: the problems there are now, with the reason that they go by.

use crate::problem::Problem;

/// A problem as an event tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Notice {
    /// The problem.
    pub problem: Problem,
    /// Which kind of problem it is.
    pub reason: Reason,
}

/// Why an object, or a part of it, is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A field has a value that means nothing.
    InvalidObject,
    /// Another Service has the address and port.
    AddressConflict,
    /// It is well formed, though it cannot be done here.
    FailedToProxy,
    /// Nobody can be asked about its health: another process has the port.
    FailedToStartServiceHealthcheck,
}

impl Reason {
    /// As the event spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidObject => "InvalidObject",
            Self::AddressConflict => "AddressConflict",
            Self::FailedToProxy => "FailedToProxy",
            Self::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
        }
    }

    /// What was tried, as the event spells it.
    pub const fn action(self) -> &'static str {
        match self {
            Self::FailedToStartServiceHealthcheck => "Listen",
            Self::InvalidObject | Self::AddressConflict | Self::FailedToProxy => "Route",
        }
    }
}
