//! Completions and manual pages, made from the definition itself.

use std::{fs, path::Path};

use crate::{
    definition,
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// Completions for a shell.
///
/// # Errors
/// When the output cannot be written.
pub fn completion(session: &Session, shell: clap_complete::Shell) -> Outcome<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut definition(), "swarmguard", &mut text);
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
