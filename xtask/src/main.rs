//! `cargo xtask …`: everything a developer of SwarmGuard does, in Rust instead of shell scripts.
fn main() {}
