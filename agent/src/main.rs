//! `swarmguard-agent`: see `swarmguard-agent --help`.

use std::process::ExitCode;

use anyhow::Context as _;
use swarmguard_agent::{
    config::{Cli, Command},
    doctor, drill,
    http::HEALTH_NAME,
    run,
};
use swarmguard_runtime::{health, logging, privileges};

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
            println!("{}", health::ask(HEALTH_NAME, cli.settings.known_by())?);
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Doctor { json }) => runtime()?.block_on(doctor::run(&cli.settings, json)),
        Some(Command::Drill(what)) => {
            runtime()?.block_on(drill::run(what, cli.settings.docker.0.as_deref()))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Run) | None => {
            privileges::forgo_new().context("cannot forgo new privileges")?;
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
