//! Who we are and who a peer is: mutual TLS from the node's own Swarm certificate, or from files of the same shape.
//!
//! Swarm gives every node a certificate (CN = node ID, OU = role, O = cluster ID; SAN names both) that it rotates by
//! itself. Bound read-only into our containers it is the identity: an agent *is* its node, a coordinator carries the
//! manager role, and nothing is to be issued, copied or renewed. Elsewhere, [`issue`] makes such certificates.

pub mod issue;
mod pem;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use swarmguard_common::{
    domain::{NodeId, Role},
    wire::ALPN,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock;

/// The name that only certificates of managers carry; agents and balancers expect it of a coordinator.
pub const COORDINATOR_NAME: &str = "swarm-manager";

const OU_MANAGER: &str = "swarm-manager";
const OU_WORKER: &str = "swarm-worker";
const OU_OPERATOR: &str = "swarmguard-operator";

/// Where the certificate comes from: `swarm:<directory>` or `files:<directory>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Swarm's own directory: `swarm-node.crt`, `swarm-node.key`, `swarm-root-ca.crt`.
    Swarm(PathBuf),
    /// A directory with `cert.pem`, `key.pem`, `ca.pem`.
    Files(PathBuf),
}

impl FromStr for Source {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("swarm", path)) if !path.is_empty() => Ok(Self::Swarm(path.into())),
            Some(("files", path)) if !path.is_empty() => Ok(Self::Files(path.into())),
            _ => Err("swarm:<directory> or files:<directory> is allowed".into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Swarm(path) => write!(f, "swarm:{}", path.display()),
            Self::Files(path) => write!(f, "files:{}", path.display()),
        }
    }
}

impl Source {
    fn paths(&self) -> [PathBuf; 3] {
        match self {
            Self::Swarm(dir) => {
                ["swarm-node.crt", "swarm-node.key", "swarm-root-ca.crt"].map(|name| dir.join(name))
            }
            Self::Files(dir) => ["cert.pem", "key.pem", "ca.pem"].map(|name| dir.join(name)),
        }
    }
}

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing or unreadable.
    #[error(
        "cannot read {path}: {source}; is the directory bound into the container, and is this node in a swarm?"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no usable {what}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// An autolocked swarm encrypts its managers' keys.
    #[error(
        "{path} is encrypted, because the swarm is autolocked: give certificate files instead (--identity files:<directory>)"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A certificate that names no node or no role.
    #[error("the certificate names no {what}: {found}")]
    Subject {
        /// Which part is missing.
        what: &'static str,
        /// What stands there instead.
        found: String,
    },
    /// rustls refuses certificate and key.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// What a certificate says of its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// CN: the node, or an operator's name.
    pub name: String,
    /// OU decides.
    pub unit: Unit,
    /// O: ID of the cluster.
    pub cluster: String,
    /// Seconds since the Unix epoch.
    pub expires_at: i64,
}

/// The organisational unit of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A manager node.
    Manager,
    /// A worker node.
    Worker,
    /// A person or program that may give commands.
    Operator,
}

impl Peer {
    /// Who is at the other end of a connection; `None` where it showed no certificate.
    ///
    /// # Errors
    /// When there is one that is not of the known shape.
    pub fn of_connection(connection: &quinn::Connection) -> Result<Option<Self>, IdentityError> {
        let Some(any) = connection.peer_identity() else { return Ok(None) };
        let chain = any.downcast::<Vec<CertificateDer<'static>>>().unwrap_or_default();
        let none = || IdentityError::Subject { what: "certificate", found: "an empty chain".into() };
        Self::of(chain.first().ok_or_else(none)?).map(Some)
    }

    /// Reads a certificate that was verified already.
    ///
    /// # Errors
    /// When subject or organisational unit are not of the known shape.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let bad = |reason: String| IdentityError::Subject { what: "subject", found: reason };
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| bad(error.to_string()))?;
        let subject = parsed.subject();
        let first =
            |mut texts: Box<dyn Iterator<Item = &str> + '_>| texts.next().unwrap_or_default().to_owned();
        let unit = first(Box::new(subject.iter_organizational_unit().filter_map(|it| it.as_str().ok())));
        let unit = match unit.as_str() {
            OU_MANAGER => Unit::Manager,
            OU_WORKER => Unit::Worker,
            OU_OPERATOR => Unit::Operator,
            _ => return Err(IdentityError::Subject { what: "role (OU)", found: subject.to_string() }),
        };
        Ok(Self {
            name: first(Box::new(subject.iter_common_name().filter_map(|it| it.as_str().ok()))),
            unit,
            cluster: first(Box::new(subject.iter_organization().filter_map(|it| it.as_str().ok()))),
            expires_at: parsed.validity().not_after.timestamp(),
        })
    }

    /// The node that the bearer is; `None` for an operator.
    pub fn node(&self) -> Option<NodeId> {
        if self.unit == Unit::Operator { None } else { self.name.parse().ok() }
    }

    /// Whether the bearer may act as `role`.
    pub fn may(&self, role: Role) -> bool {
        match role {
            Role::Agent => self.node().is_some(),
            Role::Coordinator => self.unit == Unit::Manager,
            Role::Operator => self.unit == Unit::Operator,
            // Balancers face the internet and hold no certificate at all, only a token.
            Role::Balancer => false,
        }
    }
}

/// A loaded certificate with its key and the roots it trusts.
pub struct Identity {
    /// What our own certificate says.
    pub own: Peer,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Identity").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads certificate, key and roots.
    ///
    /// # Errors
    /// When a file is missing, encrypted, or not what it should be.
    pub fn load(source: &Source) -> Result<Self, IdentityError> {
        let [certificate, key, roots] = source.paths();
        let chain = pem::certificates(&certificate)?;
        let own = Peer::of(&chain[0])?;
        Ok(Self { own, chain, key: pem::private_key(&key)?, roots: Arc::new(root_store(&roots)?) })
    }

    /// Changes when a file was replaced; compare to know when to load anew. Unreadable files count as unchanged.
    pub fn stamp(source: &Source) -> u64 {
        let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let nanos = |path: &PathBuf| {
            let since = modified(path)?.duration_since(std::time::UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        };
        source.paths().iter().filter_map(nanos).fold(0, |all, one| all.rotate_left(7) ^ one)
    }

    /// Time left until the certificate expires; zero when it has.
    pub fn valid_for(&self) -> Duration {
        let now = clock::wall_ms() / 1_000;
        Duration::from_secs(u64::try_from(self.own.expires_at).unwrap_or(0).saturating_sub(now))
    }

    /// For a coordinator: peers without certificate are let in as far as the token check, all others must carry a
    /// certificate of this cluster.
    ///
    /// # Errors
    /// When rustls refuses certificate or key.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, IdentityError> {
        let provider = provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| IdentityError::Tls(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No 0-RTT: early data can be replayed.
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// For an agent: presents the certificate; connect under [`COORDINATOR_NAME`].
    ///
    /// # Errors
    /// When rustls refuses certificate or key.
    pub fn client_config(&self) -> Result<rustls::ClientConfig, IdentityError> {
        let mut config = client_builder(Arc::clone(&self.roots))?
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

/// For a balancer: trusts the roots in a PEM file and presents no certificate, a token follows.
///
/// # Errors
/// When the file holds no certificate.
pub fn anonymous_client_config(roots: &Path) -> Result<rustls::ClientConfig, IdentityError> {
    let mut config = client_builder(Arc::new(root_store(roots)?))?.with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn client_builder(
    roots: Arc<RootCertStore>,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>, IdentityError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?;
    Ok(builder.with_root_certificates(roots))
}

fn root_store(path: &Path) -> Result<RootCertStore, IdentityError> {
    let mut store = RootCertStore::empty();
    for certificate in pem::certificates(path)? {
        store.add(certificate).map_err(|error| IdentityError::Content {
            path: path.into(),
            what: "certificate",
            reason: error.to_string(),
        })?;
    }
    Ok(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn tls(error: rustls::Error) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_with_its_kind() {
        assert_eq!("swarm:/x".parse(), Ok(Source::Swarm("/x".into())));
        assert!("/x".parse::<Source>().is_err());
        assert!("files:".parse::<Source>().is_err());
    }

    #[test]
    fn a_missing_directory_says_what_to_look_at() {
        let error = Identity::load(&Source::Swarm("/nonexistent".into())).expect_err("nothing there");
        assert!(error.to_string().contains("/nonexistent/swarm-node.crt"), "{error}");
    }

    #[test]
    fn issued_certificates_say_who_bears_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = issue::Authority::create("testcluster").expect("made");
        authority.issue("node1id", Unit::Worker, dir.path()).expect("issued");
        let identity = Identity::load(&Source::Files(dir.path().into())).expect("loads");
        assert_eq!(identity.own.node().map(|node| node.to_string()), Some("node1id".into()));
        assert_eq!(identity.own.cluster, "testcluster");
        assert!(identity.own.may(Role::Agent) && !identity.own.may(Role::Coordinator));
        assert!(identity.valid_for() > Duration::from_secs(80 * 86_400));
        identity.server_config().expect("usable as server");
        identity.client_config().expect("usable as client");
    }
}
