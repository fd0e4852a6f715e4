//! `swarmguard`: see `swarmguard --help`.

use std::process::ExitCode;

use clap_complete::CompleteEnv;

fn main() -> ExitCode {
    // A shell that completes a line asks by a variable, and wants nothing else done.
    let completing =
        CompleteEnv::with_factory(swarmguard_ctl::definition).bin("swarmguard").completer("swarmguard");
    match completing.try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref()) {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => error.exit(),
    }
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    ExitCode::from(swarmguard_ctl::run(std::env::args_os().collect(), env.collect()))
}
