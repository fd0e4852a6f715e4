//! `swarmguard-agent`: see `swarmguard-agent --help`.

use std::process::ExitCode;

use anyhow::Context as _;
use swarmguard_agent::{
    config::{Cli, Command},
    doctor, drill, http, run,
};
use swarmguard_runtime::logging;

fn main() -> ExitCode {
    match begin() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> anyhow::Result<ExitCode> {
    let cli = Cli::read()?;
    match cli.command {
        Some(Command::Healthcheck) => {
            match cli.settings.http() {
                Some(address) => println!("{}", http::ask(address)?),
                None => println!("HTTP is switched off, so there is nobody to ask"),
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Doctor { json }) => runtime()?.block_on(doctor::run(&cli.settings, json)),
        Some(Command::Drill(what)) => {
            runtime()?.block_on(drill::run(what, cli.settings.docker.0.as_deref()))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Run) | None => {
            logging::to_stderr(&cli.settings.log, cli.settings.log_json)?;
            runtime()?.block_on(run::run(cli.settings))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One thread: the agent's work is short and must not spread over a node that is short of CPUs.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(2).build().context("cannot start the runtime")
}
