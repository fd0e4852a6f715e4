//! Secrets from files: read once, compared in constant time, never shown.

use std::{fmt, fs, path::Path};

use sha2::{Digest, Sha256};

/// Shortest token taken, in bytes: what is shorter can be guessed.
pub const MIN_TOKEN_BYTES: usize = 16;
/// Longest token taken, in bytes.
pub const MAX_TOKEN_BYTES: usize = 4_096;

/// A token that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not readable.
    #[error("cannot read the token file {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// Too short or too long.
    #[error("the token in {path} has {bytes} bytes: {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} are allowed")]
    Length {
        /// The file.
        path: String,
        /// Its length without white space around it.
        bytes: usize,
    },
}

/// The digest of a secret: enough to compare, and nothing to leak.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Of a secret that is already in memory.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Reads a secret; white space around it is not part of it.
    ///
    /// # Errors
    /// When the file cannot be read, or is too short or too long.
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let shown = || path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| TokenError::Read { path: shown(), source })?;
        let secret = text.trim();
        if !(MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&secret.len()) {
            return Err(TokenError::Length { path: shown(), bytes: secret.len() });
        }
        Ok(Self::of(secret))
    }

    /// Whether `offered` is the secret. Takes the same time whatever part of it is right.
    pub fn matches(&self, offered: &str) -> bool {
        let offered: [u8; 32] = Sha256::digest(offered.as_bytes()).into();
        let differing = self.0.iter().zip(offered).fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
        differing == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_matches() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        fs::write(&file, "  0123456789abcdef\n").expect("written");
        let token = Token::from_file(&file).expect("long enough");
        assert!(token.matches("0123456789abcdef"));
        assert!(
            !token.matches("0123456789abcdeF") && !token.matches("") && !token.matches("0123456789abcdef\n")
        );
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_guessable_token_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        fs::write(&file, "secret").expect("written");
        assert!(matches!(Token::from_file(&file), Err(TokenError::Length { bytes: 6, .. })));
        assert!(matches!(Token::from_file(&dir.path().join("none")), Err(TokenError::Read { .. })));
    }
}
