//! `swarmguard-coordinator`: see `swarmguard-coordinator --help`.

use std::process::ExitCode;

use anyhow::Context as _;
use swarmguard_coordinator::{
    config::{Certs, Cli, Command, Settings},
    errands, start,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> anyhow::Result<()> {
    let cli = Cli::read()?;
    match cli.command {
        Some(Command::Healthcheck) => {
            println!("{}", errands::healthcheck(cli.settings.api_addr)?);
            Ok(())
        }
        Some(Command::Certs { what: Certs::Create(wanted) }) => errands::create_certs(&wanted),
        Some(Command::Token) => {
            println!("{}", errands::token()?);
            Ok(())
        }
        Some(Command::Run) | None => {
            log_to_stderr(&cli.settings)?;
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime =
                builder.enable_all().max_blocking_threads(8).build().context("cannot start the runtime")?;
            runtime.block_on(start::coordinate(cli.settings))
        }
    }
}

fn log_to_stderr(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log)
        .with_context(|| format!("--log {:?}: a level or target=level list is allowed", settings.log))?;
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if settings.log_json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    Ok(())
}
