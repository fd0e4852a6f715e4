//! TLS towards clients: certificate and key from files, read again when they change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// ALPN of HTTP/2.
pub const HTTP2: &[u8] = b"h2";
/// ALPN of HTTP/1.1.
pub const HTTP1: &[u8] = b"http/1.1";

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or holds nothing usable.
    #[error("{path} holds no usable {what}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// Certificate and key do not belong together.
    #[error("the certificate cannot be served: {0}")]
    Pair(#[from] rustls::Error),
}

/// Reads certificate chain and key.
///
/// # Errors
/// When a file is missing or unusable, or they do not belong together.
pub fn load(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let bad = |path: &Path, what, reason: String| TlsError::File { path: path.into(), what, reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| bad(certificate, "certificate", error.to_string()))?;
    if chain.is_empty() {
        return Err(bad(certificate, "certificate", "there is no CERTIFICATE section".into()));
    }
    let key =
        PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, "private key", error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Ok(config)
}

/// Reads the files again whenever one of them changed; what cannot be used is reported and the old one kept.
pub async fn watch(certificate: PathBuf, key: PathBuf, current: Arc<ArcSwap<ServerConfig>>) {
    let mut known = stamp(&certificate, &key);
    loop {
        tokio::time::sleep(LOOK).await;
        let newest = stamp(&certificate, &key);
        if newest == known {
            continue;
        }
        known = newest;
        match load(&certificate, &key) {
            Ok(config) => {
                current.store(Arc::new(config));
                tracing::info!(certificate = %certificate.display(), "the certificate was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the certificate changed but cannot be used, the old one is kept");
            }
        }
    }
}

fn stamp(certificate: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [certificate, key].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
}
