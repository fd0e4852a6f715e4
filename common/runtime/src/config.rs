//! Reading a program's settings and checking every value, so that a wrong one is named before anything starts.
//!
//! Order of precedence, weakest first: built-in default, file (`--config`), environment (`SWARMGUARD_<FLAG>`), flag.
//! Environment and flags are clap's; this module adds the file below them: its keys become arguments that stand before
//! the real ones (the command needs `args_override_self`), unless the environment says the same thing. Unknown keys are
//! errors, and so are unknown variables of the environment: a typing error must not leave a default in force unnoticed.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, Parser};
use toml::Value;

/// What the variables of this product begin with.
const PREFIX: &str = "SWARMGUARD_";

/// Variables that are meant for others and may be in a program's environment all the same: for the stack files, which
/// are filled in from the shell that deploys them, and for the tools that build, measure and try these programs.
const MEANT_FOR_OTHERS: &[&str] = &[
    "SWARMGUARD_AGENT_CHECK_ADDR",
    "SWARMGUARD_AGENT_HTTP_ADDR",
    "SWARMGUARD_AGENT_IMAGE",
    "SWARMGUARD_API_PLAIN",
    "SWARMGUARD_BALANCER_IMAGE",
    "SWARMGUARD_BENCH_AGENT",
    "SWARMGUARD_BPF_OBJECT",
    "SWARMGUARD_BUDGET",
    "SWARMGUARD_CERTIFICATES",
    "SWARMGUARD_CLUSTER",
    "SWARMGUARD_COORDINATORS",
    "SWARMGUARD_COORDINATOR_IMAGE",
    "SWARMGUARD_DOCKER_SOCKET",
    "SWARMGUARD_LINK_MBPS",
    "SWARMGUARD_LOG",
    "SWARMGUARD_MANAGER",
    "SWARMGUARD_NODE_CGROUP",
    "SWARMGUARD_NODE_CPUS",
    "SWARMGUARD_OBSERVE",
    "SWARMGUARD_OPEN_READS",
    "SWARMGUARD_READER_TOKEN",
];

/// Largest settings file read, in bytes.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// A settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("cannot read the settings file {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// Larger than any sensible one.
    #[error("the settings file {path} has {bytes} bytes, {MAX_FILE_BYTES} are allowed")]
    Large {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// Not TOML.
    #[error("the settings file {path} is not TOML: {reason}")]
    Syntax {
        /// The file.
        path: String,
        /// Where and why.
        reason: String,
    },
    /// A key that the program does not know.
    #[error("unknown key {key} in {path}: known are {known}")]
    UnknownKey {
        /// The file.
        path: String,
        /// The key.
        key: String,
        /// Comma-separated.
        known: String,
    },
    /// The file's values are refused.
    #[error("the settings file {path} is refused: {reason}")]
    Refused {
        /// The file.
        path: String,
        /// Which value, and what is allowed.
        reason: String,
    },
    /// A variable of the environment that the program does not know.
    #[error("unknown environment variable {name}: known are {known}")]
    UnknownVariable {
        /// Its name.
        name: String,
        /// Comma-separated.
        known: String,
    },
    /// A table or date where a plain value belongs.
    #[error("{key} in {path} is a {kind}: a string, number, boolean or a list of strings is allowed")]
    Kind {
        /// The file.
        path: String,
        /// The key.
        key: String,
        /// TOML's name of the type.
        kind: &'static str,
    },
}

/// Reads flags, environment and the file that `--config` names.
///
/// # Errors
/// When the file or one of its values is wrong, or the environment has a variable of ours that this program does not
/// know. A wrong flag or value of a variable ends the process with a message, as clap does.
pub fn read<P: Parser>() -> Result<P, ConfigError> {
    let command = P::command();
    refuse_unknown(&command, std::env::vars_os().map(|(name, _)| name))?;
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let matches = command.clone().get_matches_from(&arguments);
    let matches = match matches.get_one::<PathBuf>("config") {
        Some(file) => with_file(&command, arguments, file)?,
        None => matches,
    };
    Ok(P::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command.clone()).exit()))
}

/// Parses again with the file's values below the arguments and the environment.
fn with_file(
    command: &Command,
    mut arguments: Vec<OsString>,
    file: &Path,
) -> Result<ArgMatches, ConfigError> {
    let known: Vec<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .filter(|name| !matches!(*name, "config" | "help" | "version"))
        .map(Into::into)
        .collect();
    // Not every variable is named after its flag.
    let said = |flag: &OsString| {
        let name = flag.to_str().and_then(|text| text.trim_start_matches("--").split('=').next());
        let argument = command.get_arguments().find(|argument| argument.get_long() == name);
        argument.and_then(clap::Arg::get_env).is_some_and(|variable| std::env::var_os(variable).is_some())
    };
    let below = file_as_arguments(file, &known)?.into_iter().filter(|flag| !said(flag));
    let at = arguments.len().min(1);
    arguments.splice(at..at, below);
    command.clone().try_get_matches_from(arguments).map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        ConfigError::Refused { path: file.display().to_string(), reason }
    })
}

/// Refuses variables of ours that neither this command nor anybody else knows.
fn refuse_unknown(command: &Command, names: impl Iterator<Item = OsString>) -> Result<(), ConfigError> {
    let mut known = BTreeSet::new();
    variables(command, &mut known);
    let unknown = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with(PREFIX))
        .find(|name| !known.contains(name.as_str()) && !MEANT_FOR_OTHERS.contains(&name.as_str()));
    let Some(name) = unknown else { return Ok(()) };
    Err(ConfigError::UnknownVariable { name, known: known.into_iter().collect::<Vec<_>>().join(", ") })
}

/// The variables that a command and its subcommands read.
fn variables(command: &Command, into: &mut BTreeSet<String>) {
    let named = command.get_arguments().filter_map(|argument| argument.get_env().and_then(OsStr::to_str));
    into.extend(named.map(ToOwned::to_owned));
    command.get_subcommands().for_each(|inner| variables(inner, into));
}

/// Turns a settings file into arguments (`--key=value`), to be put before the real ones so that those override it.
/// `known` are the long names of the program's flags; `-` and `_` are alike in the file.
///
/// # Errors
/// When the file is unreadable, not TOML, or has a key or kind of value that is not allowed.
pub fn file_as_arguments(path: &Path, known: &[String]) -> Result<Vec<OsString>, ConfigError> {
    let shown = path.display().to_string();
    let read = |source| ConfigError::Read { path: shown.clone(), source };
    let bytes = fs::metadata(path).map_err(read)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(ConfigError::Large { path: shown, bytes });
    }
    let text = fs::read_to_string(path).map_err(read)?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        path: shown.clone(),
        reason: error.to_string().trim().into(),
    })?;
    let mut arguments = Vec::new();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        if !known.contains(&flag) {
            return Err(ConfigError::UnknownKey { path: shown, key, known: known.join(", ") });
        }
        let kind = value.type_str();
        let text = plain(&value).ok_or_else(|| ConfigError::Kind { path: shown.clone(), key, kind })?;
        let variable = format!("{PREFIX}{}", flag.replace('-', "_").to_ascii_uppercase());
        if std::env::var_os(variable).is_none() {
            arguments.push(format!("--{flag}={text}").into());
        }
    }
    Ok(arguments)
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<OsString>, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), text).expect("written");
        file_as_arguments(file.path(), &["http-addr".into(), "coordinators".into()])
    }

    #[test]
    fn keys_become_flags() {
        let arguments = read("http_addr = '0.0.0.0:8082'\ncoordinators = ['a:1', 'b:2']").expect("sensible");
        assert_eq!(arguments, ["--coordinators=a:1,b:2", "--http-addr=0.0.0.0:8082"]);
    }

    #[derive(Debug, Parser)]
    #[command(args_override_self = true)]
    struct Program {
        #[arg(long, env = "SWARMGUARD_COLOUR", default_value = "red", value_parser = ["red", "blue"])]
        colour: String,
        #[command(subcommand)]
        inner: Option<Inner>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Inner {
        Paint {
            #[arg(long, env = "SWARMGUARD_BRUSH")]
            brush: Option<String>,
        },
    }

    #[test]
    fn a_variable_that_nobody_knows_is_named() {
        use clap::CommandFactory as _;
        let check = |names: &[&str]| refuse_unknown(&Program::command(), names.iter().map(OsString::from));
        assert!(check(&["PATH", "SWARMGUARD_COLOUR", "SWARMGUARD_BRUSH", "SWARMGUARD_AGENT_IMAGE"]).is_ok());
        let error = check(&["HOME", "SWARMGUARD_COLOR"]).expect_err("a typing error").to_string();
        assert!(error.contains("SWARMGUARD_COLOR:") && error.contains("SWARMGUARD_COLOUR"), "{error}");
    }

    #[test]
    fn what_the_stack_files_are_filled_in_from_is_meant_for_others() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
        let mut seen = 0;
        for file in fs::read_dir(deploy).expect("stack files").flatten() {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            for after in text.split("${").skip(1) {
                let name: String =
                    after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if name.starts_with(PREFIX) {
                    seen += 1;
                    assert!(MEANT_FOR_OTHERS.contains(&name.as_str()), "{name} of {}", file.path().display());
                }
            }
        }
        assert!(seen > 5, "the stack files were read");
    }

    #[test]
    fn a_files_values_stand_below_flags_and_are_checked_like_them() {
        use clap::{CommandFactory as _, FromArgMatches as _};
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let read = |text: &str, arguments: &[&str]| {
            fs::write(file.path(), text).expect("written");
            let arguments = std::iter::once("program").chain(arguments.iter().copied()).map(OsString::from);
            let matches = with_file(&Program::command(), arguments.collect(), file.path())?;
            Ok::<_, ConfigError>(Program::from_arg_matches(&matches).expect("matches").colour)
        };
        assert_eq!(read("colour = 'blue'", &[]).expect("sensible"), "blue");
        assert_eq!(read("colour = 'blue'", &["--colour=red", "paint"]).expect("sensible"), "red");
        let error = read("colour = 'green'", &[]).expect_err("not a colour").to_string();
        assert!(error.contains("green") && error.contains("--colour"), "{error}");
    }

    #[test]
    fn unknown_keys_wrong_kinds_and_bad_syntax_are_named() {
        assert!(
            matches!(read("htpp_addr = 1"), Err(ConfigError::UnknownKey { key, .. }) if key == "htpp_addr")
        );
        assert!(matches!(read("[http_addr]"), Err(ConfigError::Kind { kind: "table", .. })));
        assert!(matches!(read("= 1"), Err(ConfigError::Syntax { .. })));
        assert!(matches!(file_as_arguments(Path::new("/nonexistent"), &[]), Err(ConfigError::Read { .. })));
    }
}
