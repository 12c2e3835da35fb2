//! Operations: what a team tells each other beside its work. An optional module: an organization has it
//! once it has enabled it.

pub mod updates;
