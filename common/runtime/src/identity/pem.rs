//! Reading PEM files the way Swarm writes them: its keys carry headers (`kek-version: 0`) that PEM parsers refuse.

use std::{fs, path::Path};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::IdentityError;

/// Largest PEM file read, in bytes.
const MAX_PEM_BYTES: usize = 1024 * 1024;

/// All certificates of a file, leaf first; never empty.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bad = |reason: String| IdentityError::Content { path: path.into(), what: "certificate", reason };
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() { Err(bad("there is no CERTIFICATE section".into())) } else { Ok(found) }
}

/// The private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let text = read(path)?;
    if is_encrypted(&text) {
        return Err(IdentityError::Locked { path: path.into() });
    }
    PrivateKeyDer::from_pem_slice(without_headers(&text).as_bytes()).map_err(|error| IdentityError::Content {
        path: path.into(),
        what: "private key",
        reason: error.to_string(),
    })
}

fn read(path: &Path) -> Result<String, IdentityError> {
    let fail = |source| IdentityError::Read { path: path.into(), source };
    let bytes = fs::read(path).map_err(fail)?;
    if bytes.len() > MAX_PEM_BYTES {
        return Err(fail(std::io::Error::other(format!(
            "{} bytes are too many for a PEM file",
            bytes.len()
        ))));
    }
    String::from_utf8(bytes).map_err(|_| fail(std::io::Error::other("it is not text")))
}

/// Swarm encrypts with PKCS#8 (`ENCRYPTED PRIVATE KEY`) or, in older engines, with a `DEK-Info`/`Proc-Type` header.
fn is_encrypted(text: &str) -> bool {
    text.contains("BEGIN ENCRYPTED") || text.contains("Proc-Type: 4,ENCRYPTED")
}

/// RFC 1421 headers stand between the BEGIN line and an empty line; they contain `: `, which base64 never does.
fn without_headers(text: &str) -> String {
    text.lines()
        .filter(|line| !line.contains(": ") && !line.is_empty())
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_swarms_keys_are_taken_off() {
        let text = "-----BEGIN EC PRIVATE KEY-----\nkek-version: 0\nraft-dek: abc=\n\nMHcC\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(
            without_headers(text),
            "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\n"
        );
    }

    #[test]
    fn an_encrypted_key_is_recognised() {
        assert!(is_encrypted("-----BEGIN ENCRYPTED PRIVATE KEY-----\nkek-version: 5\n"));
        assert!(!is_encrypted("-----BEGIN EC PRIVATE KEY-----\nkek-version: 0\n"));
    }
}
