//! Making certificates of the same shape as Swarm's, for autolocked swarms, tests and operators.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};

use super::{IdentityError, OU_MANAGER, OU_OPERATOR, OU_WORKER, Unit};

/// Days that a leaf certificate is valid, as Swarm's are by default.
const VALID_DAYS: i64 = 90;

/// The kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// As Swarm's own.
    EcdsaP256,
    /// Its signatures are all of one length, so that a handshake takes the same datagrams each time: what a simulation
    /// needs that is to repeat itself. Browsers do not take it.
    Ed25519,
}

impl KeyKind {
    fn generate(self) -> Result<KeyPair, IdentityError> {
        let algorithm = match self {
            Self::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
            Self::Ed25519 => &PKCS_ED25519,
        };
        KeyPair::generate_for(algorithm).map_err(refused)
    }
}

/// A certificate authority for one cluster.
pub struct Authority {
    keys: KeyKind,
    cluster: String,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new root for the cluster with this ID.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub fn create(cluster: &str) -> Result<Self, IdentityError> {
        Self::with_keys(KeyKind::EcdsaP256, cluster)
    }

    /// The same with keys of one kind, the root's and all others.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub fn with_keys(keys: KeyKind, cluster: &str) -> Result<Self, IdentityError> {
        let key = keys.generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = subject("swarm-ca", None, cluster);
        let certificate = params.self_signed(&key).map_err(refused)?;
        let pem = certificate.pem();
        Ok(Self { keys, cluster: cluster.into(), pem, issuer: Issuer::new(params, key) })
    }

    /// The root certificate as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes `cert.pem`, `key.pem` (mode 0600) and `ca.pem` for one bearer into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written or the name cannot stand in a certificate.
    pub fn issue(&self, name: &str, unit: Unit, dir: &Path) -> Result<(), IdentityError> {
        let role = match unit {
            Unit::Manager => OU_MANAGER,
            Unit::Worker => OU_WORKER,
            Unit::Operator => OU_OPERATOR,
        };
        let key = self.keys.generate()?;
        let mut params = CertificateParams::new([role.to_owned(), name.to_owned()]).map_err(refused)?;
        params.distinguished_name = subject(name, Some(role), &self.cluster);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let start = i64::try_from(crate::clock::wall_ms() / 1_000).unwrap_or(0) - 3_600;
        params.not_before = unix(start);
        params.not_after = unix(start + VALID_DAYS * 86_400);
        let certificate = params.signed_by(&key, &self.issuer).map_err(refused)?;
        write(&dir.join("cert.pem"), &certificate.pem(), 0o644)?;
        write(&dir.join("key.pem"), &key.serialize_pem(), 0o600)?;
        write(&dir.join("ca.pem"), &self.pem, 0o644)
    }
}

fn subject(name: &str, role: Option<&str>, cluster: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if let Some(role) = role {
        subject.push(DnType::OrganizationalUnitName, role);
    }
    subject.push(DnType::OrganizationName, cluster);
    subject
}

fn unix(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    options
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| IdentityError::Read { path: path.into(), source })
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn refused(error: rcgen::Error) -> IdentityError {
    IdentityError::Tls(error.to_string())
}
