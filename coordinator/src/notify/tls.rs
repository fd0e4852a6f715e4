//! Whom we believe when we tell people: the authorities that browsers believe, because an image of ours holds no others, and
//! those of a channel's `ca`.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject as _};

/// The authorities' certificates of a PEM text.
///
/// # Errors
/// Where there is none, or one is damaged.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| format!("ca: {error}"))?;
    if all.is_empty() {
        return Err("ca: no certificate in it".into());
    }
    Ok(all)
}

/// Everybody who is believed.
///
/// # Errors
/// Where `ca` is no certificate.
pub fn roots(ca: Option<&str>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in ca.map(certificates).transpose()?.unwrap_or_default() {
        roots.add(certificate).map_err(|error| format!("ca: {error}"))?;
    }
    Ok(roots)
}

/// Settings of a client.
///
/// # Errors
/// As [`roots`].
pub fn client(ca: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots(ca)?).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
