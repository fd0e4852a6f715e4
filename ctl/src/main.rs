//! `swarmguard`: see `swarmguard --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    ExitCode::from(swarmguard_ctl::run(std::env::args_os().collect(), env.collect()))
}
