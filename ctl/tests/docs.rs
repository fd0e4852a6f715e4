//! docs/cli.md says what the program does: its second half is made from the definition.

use std::{fs, path::Path};

const MARK: &str =
    "<!-- from here on made by `SNAPSHOTS=overwrite cargo test -p swarmguard-ctl --test docs` -->\n";

#[test]
fn the_reference_is_the_definition() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let text = fs::read_to_string(&file).expect("docs/cli.md");
    let (head, reference) = text.split_once(MARK).expect("the mark");
    let made = swarmguard_ctl::commands::manual::reference();
    if std::env::var_os("SNAPSHOTS").is_some_and(|word| word == "overwrite") {
        fs::write(&file, format!("{head}{MARK}{made}")).expect("written");
        return;
    }
    assert!(
        reference == made,
        "docs/cli.md is not what the definition says: run it with SNAPSHOTS=overwrite"
    );
}

/// Documents whose commands are tried.
const DOCUMENTS: [&str; 5] =
    ["README.md", "docs/guide.md", "docs/cli.md", "docs/drills.md", "docs/security.md"];

/// Every command of ours that a document shows, as words: in blocks after the prompt, and in text between backticks.
fn commands(document: &str) -> Vec<(String, Vec<String>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{document}: {error}"));
    let text = text.split(MARK).next().expect("a first part");
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            found.push(command.split(" #").next().unwrap_or(command).to_owned());
            continue;
        }
        let spans = line.split('`').skip(1).step_by(2);
        found.extend(spans.filter(|span| span.starts_with("swarmguard ")).map(ToOwned::to_owned));
    }
    let words = |command: String| {
        let words: Vec<String> = command.split_whitespace().map(ToOwned::to_owned).collect();
        let at = words.iter().position(|word| word == "swarmguard")?;
        // What stands in front is docker's, or the environment.
        let plain = words[..at]
            .iter()
            .all(|word| word.contains('=') || word == "docker" || word.starts_with("--") || word == "prod");
        let named = !command.contains(['…', '<', '|', '(']);
        (plain && named).then(|| (command.clone(), words[at..].to_vec()))
    };
    found.into_iter().filter_map(words).collect()
}

#[test]
fn every_command_in_the_documents_is_one() {
    use clap::Parser as _;
    let mut tried = 0;
    for document in DOCUMENTS {
        for (command, words) in commands(document) {
            // A word alone names the command and does not show how it is typed.
            let bare =
                words.len() == 2 || words[1..].iter().all(|word| !word.starts_with('-')) && words.len() == 2;
            match swarmguard_ctl::cli::Cli::try_parse_from(&words) {
                Ok(_) => {}
                Err(error) if bare && error.kind() == clap::error::ErrorKind::MissingRequiredArgument => {}
                Err(error)
                    if bare
                        && error.kind()
                            == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {}
                Err(error) => panic!("{document}: {command}: {error}"),
            }
            tried += 1;
        }
    }
    assert!(tried > 60, "only {tried} commands were found: are the documents written otherwise now?");
}

#[test]
fn a_document_with_a_wrong_command_would_be_found() {
    use clap::Parser as _;
    let words = ["swarmguard", "drain", "--node", "w2"];
    assert!(swarmguard_ctl::cli::Cli::try_parse_from(words).is_err());
    assert!(commands("README.md").iter().any(|(command, _)| command == "swarmguard status"));
    assert!(commands("docs/guide.md").iter().any(|(command, _)| command.starts_with("DOCKER_HOST=")));
}
