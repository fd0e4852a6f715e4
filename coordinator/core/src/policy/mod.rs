//! Rules.

mod constraint;
pub mod placement;
pub mod preflight;
