//! What the tests above a unit test have in common: the case files and the stage they play on.

pub mod case;
pub mod cluster;
pub mod objects;
pub mod stage;
