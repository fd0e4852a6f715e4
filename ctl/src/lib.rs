//! `swarmguard`: the operator's command line and terminal view.
//!
//! It reaches the coordinator as docker reaches its engine, so that whoever may use a manager's engine needs no port, no
//! token and no certificate ([`coordinator`]). The clock is read through `swarmguard_runtime::clock` as everywhere.

pub mod cli;
pub mod commands;
pub mod complete;
pub mod compose;
pub mod coordinator;
pub mod drill;
pub mod engine;
pub mod failure;
pub mod out;
pub mod plugin;
pub mod session;
pub mod stack;
pub mod top;
pub mod ui;

use std::{collections::BTreeMap, ffi::OsString};

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command};
use failure::{Exit, Failure, Outcome};
use session::Session;

/// Runs a command; answers the exit code. `args` begin with the program's name.
pub fn run(args: Vec<OsString>, mut env: BTreeMap<String, String>) -> u8 {
    let args = match plugin::arguments(args, &mut env) {
        plugin::Wanted::Run(args) => args,
        plugin::Wanted::Metadata => {
            println!("{}", plugin::metadata());
            return Exit::Done as u8;
        }
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage as u8 } else { Exit::Done as u8 };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return Exit::Failed as u8;
        }
    };
    let session = Session::new(cli.global, env);
    let ended = runtime.block_on(begin(&session, cli.command));
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit as u8,
        Err(failure) => {
            tell(&session, &failure);
            failure.exit as u8
        }
    }
}

fn tell(session: &Session, failure: &Failure) {
    if failure.what.is_empty() {
        return;
    }
    let word = if failure.exit == Exit::Refused { "refused" } else { "error" };
    session.note(&format!("{word}: {failure}"));
    if let Some(needs) = &failure.needs {
        session.note(&format!("  needs: {needs}"));
    }
    if let Some(hint) = &failure.hint {
        session.note(&format!("  do: {hint}"));
    }
}

async fn begin(session: &Session, command: Command) -> Outcome<Exit> {
    commands::run(session, command).await
}

/// The whole definition, for completions and manual pages.
pub fn definition() -> clap::Command {
    Cli::command()
}
