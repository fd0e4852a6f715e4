//! The balancer's program: reads settings, then serves until it is told to stop.

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::{Context as _, Result};
use swarmguard_balancer::{
    admin, run,
    settings::{Command, Settings},
};
use swarmguard_runtime::{health, privileges};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let settings = Settings::read();
    match start(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings) -> Result<()> {
    if settings.command == Some(Command::Healthcheck) {
        println!("{}", health::ask(admin::HEALTH_NAME, settings.admin_addr.port())?);
        return Ok(());
    }
    privileges::forgo_new().context("cannot forgo new privileges")?;
    // Workers have runtimes of their own; this one is for control and needs no second thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let filter = EnvFilter::try_new(&settings.log).with_context(|| {
        format!("--log (SWARMGUARD_LOG) {:?} is no filter: use error, warn, info, debug", settings.log)
    })?;
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    runtime.block_on(run::until_signal(settings))
}
