//! `swarmguard-coordinator`: see `swarmguard-coordinator --help`.

use std::process::ExitCode;

use anyhow::Context as _;
use swarmguard_coordinator::{
    bridge,
    config::{Certs, Cli, Command},
    errands, start, volume,
};
use swarmguard_runtime::{logging, privileges};

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
            println!(
                "{}",
                errands::healthcheck(cli.settings.api_socket.0.as_deref(), cli.settings.api_addr)?
            );
            Ok(())
        }
        Some(Command::Certs { what: Certs::Create(wanted) }) => errands::create_certs(&wanted),
        Some(Command::Token) => {
            println!("{}", errands::token()?);
            Ok(())
        }
        Some(Command::Stdio) => match cli.settings.api_socket.0 {
            Some(socket) => bridge::stdio(&socket),
            None => anyhow::bail!("the coordinator serves no socket: it was started with --api-socket=none"),
        },
        Some(Command::RemoveVolume { name }) => volume::remove(&cli.settings.docker, &name),
        Some(Command::Run) | None => {
            privileges::forgo_new().context("cannot forgo new privileges")?;
            logging::to_stderr(&cli.settings.log, cli.settings.log_json)?;
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime =
                builder.enable_all().max_blocking_threads(8).build().context("cannot start the runtime")?;
            runtime.block_on(start::coordinate(cli.settings))
        }
    }
}
