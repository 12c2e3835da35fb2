//! Work: what a team works towards, and what there is to do for it.

pub mod figures;
pub mod notices;
pub mod projects;
pub mod tasks;

use crate::types::text_enum;

text_enum! {
    /// How much something presses.
    Priority { Low = "low", Medium = "medium", High = "high", Urgent = "urgent" }
}
