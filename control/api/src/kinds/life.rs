//! What happens to an object besides being stored: what it is given, when it may go.

use serde_json::Value;

use super::Kind;
use crate::allocate::Ranges;
use crate::object::Key;
use crate::status::Result;
use crate::store::Txn;

/// The life of a kind's objects, where it is not everybody's; a row begins from [`Life::PLAIN`].
pub(crate) struct Life {
    /// Whether a new object may say its status. A node registers with what it has.
    pub(crate) begins_with_status: bool,
    /// Fields besides the status that an update leaves alone, as a subresource is for them.
    pub(crate) kept: &'static [&'static str],
    /// Completes a new object with what depends on others.
    pub(crate) admit: fn(&Txn<'_>, &Kind, &mut Value) -> Result<()>,
    /// Gives an object what nobody else may have, once it is checked: addresses, ports.
    pub(crate) allocate: fn(&mut Txn<'_>, &Ranges, &Key, &mut Value, Option<&Value>) -> Result<()>,
    /// Whether the object of that name stays for good.
    pub(crate) stays: fn(&str) -> bool,
    /// How many seconds an object is given that is deleted, and how many the client asks for.
    pub(crate) grace: fn(&Value, Option<i64>) -> i64,
    /// Marks an object that begins to go.
    pub(crate) going: fn(&mut Value),
    /// Looks, after a deletion was asked for, who of the kind may go.
    pub(crate) retire: fn(&mut Txn<'_>),
    /// Takes back what an object was given, as it goes.
    pub(crate) release: fn(&mut Txn<'_>, &Value),
}

impl Life {
    /// Given nothing, and gone when it is deleted.
    pub(crate) const PLAIN: Self = Self {
        begins_with_status: false,
        kept: &[],
        admit: |_, _, _| Ok(()),
        allocate: |_, _, _, _, _| Ok(()),
        stays: |_| false,
        grace: |_, _| 0,
        going: |_| {},
        retire: |_| {},
        release: |_, _| {},
    };
}
