//! Completions and manual pages, made from the definition itself.

use std::{fs, path::Path};

use clap_complete::env::Shells;

use crate::{
    definition,
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// What makes a shell ask this program for completions, so that names are those of the swarm at that moment.
///
/// # Errors
/// When the output cannot be written.
pub fn completion(session: &Session, shell: clap_complete::Shell) -> Outcome<Exit> {
    let mut text = Vec::new();
    Shells::builtins()
        .completer(&shell.to_string())
        .ok_or_else(|| Failure::usage(format!("nothing is known about completion for {shell}")))?
        .write_registration("COMPLETE", "swarmguard", "swarmguard", "swarmguard", &mut text)
        .map_err(|error| Failure::failed(format!("cannot write completions: {error}")))?;
    session.print(&String::from_utf8_lossy(&text))?;
    Ok(Exit::Done)
}

/// The manual page of the program, or one file for each command.
///
/// # Errors
/// When they cannot be written.
pub fn manual(session: &Session, out: Option<&Path>) -> Outcome<Exit> {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot write the manual: {error}"));
    match out {
        Some(directory) => {
            fs::create_dir_all(directory).map_err(failed)?;
            clap_mangen::generate_to(definition(), directory).map_err(failed)?;
            session.note(&format!("written to {}", directory.display()));
        }
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(definition()).render(&mut text).map_err(failed)?;
            session.print(&String::from_utf8_lossy(&text))?;
        }
    }
    Ok(Exit::Done)
}

/// All commands and their options as Markdown, for docs/cli.md.
pub fn reference() -> String {
    let mut root = definition();
    root.build();
    let mut text = String::from("### Options of all commands\n\n");
    text.push_str(&options(&root, true));
    describe(&root, "swarmguard", &mut text);
    text
}

/// The commands below one, and those below them.
fn describe(parent: &clap::Command, path: &str, text: &mut String) {
    for command in parent.get_subcommands().filter(|command| command.get_name() != "help") {
        let arguments: Vec<String> = command
            .get_positionals()
            .map(|argument| {
                let name = argument
                    .get_value_names()
                    .and_then(|names| names.first())
                    .map_or(argument.get_id().as_str(), |name| name.as_str());
                let dots = if matches!(argument.get_action(), clap::ArgAction::Append) { "…" } else { "" };
                if argument.is_required_set() {
                    format!(" {}{dots}", name.to_uppercase())
                } else {
                    format!(" [{}]", name.to_uppercase())
                }
            })
            .collect();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let path = format!("{path} {}", command.get_name());
        text.push_str(&format!("\n### {path}{}\n\n{about}.\n", arguments.concat()));
        let options = options(command, false);
        if !options.is_empty() {
            text.push_str(&format!("\n{options}"));
        }
        describe(command, &path, text);
    }
}

/// A table of the options that are a command's own, or of those of all commands.
fn options(command: &clap::Command, global: bool) -> String {
    let mut lines = String::new();
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long().filter(|long| !matches!(*long, "help" | "version")) else {
            continue;
        };
        if argument.is_global_set() != global {
            continue;
        }
        let short = argument.get_short().map_or_else(String::new, |short| format!("-{short}, "));
        let value = match argument.get_value_names() {
            Some([name, ..]) if argument.get_action().takes_values() => format!(" {name}"),
            _ => String::new(),
        };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
        lines.push_str(&format!("| `{short}--{long}{value}` | {help} |\n"));
    }
    if lines.is_empty() { lines } else { format!("| option | what |\n|---|---|\n{lines}") }
}
