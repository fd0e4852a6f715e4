//! The web-stress workload's program: see `swarmguard_tests::web_stress`.

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;
use swarmguard_tests::web_stress::args::{Cli, Command};
use swarmguard_tests::web_stress::{check, serve};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Healthcheck) = cli.command {
        return check::check(cli.serve.addr);
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    // At least two threads: one blocked in the kernel must not keep the health check waiting.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(cli.serve))
}
