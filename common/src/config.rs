//! Reading a program's settings file and checking every value, so that a wrong one is named before anything starts.
//!
//! Order of precedence, weakest first: built-in default, file (`--config`), environment (`SWARMGUARD_<FLAG>`), flag.
//! Environment and flags are clap's; this module adds the file below them: its keys become arguments that stand before
//! the real ones (the command needs `args_override_self`), unless the environment says the same thing. Unknown keys are
//! errors.

use std::{ffi::OsString, fs, path::Path};

use toml::Value;

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
        let variable = format!("SWARMGUARD_{}", flag.replace('-', "_").to_ascii_uppercase());
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
