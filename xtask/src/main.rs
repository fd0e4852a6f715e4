//! `cargo xtask …`: everything a developer of SwarmGuard does, in Rust instead of shell scripts.
//!
//! One module per command. Each has `Args` (clap) and `run(args) -> anyhow::Result<ExitCode>`; adding a
//! command is a `mod` line, a variant of [`Command`] and an arm in `main`. What a command needs from the
//! machine it asks of [`host`], so that nothing has to be installed by hand and `--no-install` always works.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod browser;
mod cache;
mod cli;
mod clock;
mod cluster;
mod cpio;
mod dashboards;
mod demo;
mod deploy;
mod dist;
mod ebpf;
mod fuzz;
mod guest;
mod host;
mod image;
mod interrupt;
mod lint;
mod modules;
mod process;
mod programs;
mod progress;
mod rootfs;
mod sbom;
mod test;
mod vm;
mod watch;
mod workspace;

/// Build, run, test and measure SwarmGuard
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need from Debian, saying what and why
    Setup(host::Args),
    /// Compile the BPF programs of the agent
    BuildEbpf(ebpf::Args),
    /// Build the container images from static binaries, without a base image
    Image(image::Args),
    /// Build the command line as one static program, with completions and manual pages
    Cli(cli::Args),
    /// Everything that a release consists of, for all processors
    Dist(dist::Args),
    /// A real Swarm of several nodes on this machine
    Cluster(cluster::Args),
    /// A program on a real kernel of its own
    Vm(vm::Args),
    /// Measure the product beside what it is compared with
    Bench(bench::Args),
    /// See a hot replica leave its node, and no request lost
    Demo(demo::Args),
    /// Check format, lints, house rules and dependencies
    Lint(lint::Args),
    /// Run every test tier
    Test(test::Args),
    /// Write Grafana's dashboards from their description
    Dashboards(dashboards::Args),
    /// Take pictures of the coordinator's page for the docs
    Screenshots(browser::Args),
    /// Try the readers of foreign text with bytes that nobody would write
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let started = clock::Stopwatch::start();
    let result = match Cli::parse().command {
        Command::Setup(args) => host::run(&args),
        Command::BuildEbpf(args) => ebpf::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Cli(args) => cli::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Dashboards(args) => dashboards::run(&args),
        Command::Screenshots(args) => browser::screenshots(&args),
        Command::Fuzz(args) => fuzz::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        eprintln!("(after {started})");
        ExitCode::FAILURE
    })
}
