//! A connection to an engine, whatever it goes over.

use std::{
    fs, io,
    path::Path,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::address::{Address, Endpoint};
use crate::failure::{Failure, Outcome};

/// For connecting over the network.
const CONNECT: Duration = Duration::from_secs(10);

/// What bytes travel over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
/// Any of them.
pub type AnyStream = Box<dyn Stream>;

/// Opens connections; those over ssh share one login.
#[derive(Debug)]
pub struct Connector {
    /// To what.
    pub address: Address,
    /// Where ssh keeps the login that later connections share; gone with us.
    control: Option<tempfile::TempDir>,
}

impl Connector {
    /// For an engine. Nothing is connected yet.
    ///
    /// # Errors
    /// When ssh is wanted and there is no temporary directory for it.
    pub fn new(address: Address) -> Outcome<Self> {
        let ssh = matches!(address.endpoint, Endpoint::Ssh { .. });
        let control = ssh.then(|| tempfile::Builder::new().prefix("swarmguard-ssh-").tempdir());
        let control = control.transpose().map_err(|error| {
            Failure::failed(format!("no temporary directory for ssh: {error}"))
                .hint("set TMPDIR to one that can be written")
        })?;
        Ok(Self { address, control })
    }

    /// A new connection.
    ///
    /// # Errors
    /// When the engine cannot be reached; with what to do.
    pub async fn open(&self) -> Outcome<AnyStream> {
        match &self.address.endpoint {
            Endpoint::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(self.no_socket(path, &error)),
            },
            Endpoint::Tcp { host, port, tls } => {
                let stream = tcp(host, *port).await.map_err(|why| self.unreachable(&why))?;
                let Some(directory) = tls else { return Ok(Box::new(stream)) };
                let config = engine_tls(directory)?;
                let stream = secure(stream, config, host).await.map_err(|why| self.unreachable(&why))?;
                Ok(Box::new(stream))
            }
            Endpoint::Ssh { user, host, port, socket } => {
                let mut command = Command::new("ssh");
                command.args(["-T", "-o", "ConnectTimeout=15"]);
                if let Some(control) = &self.control {
                    let path = control.path().join("c");
                    command.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=5", "-o"]);
                    command.arg(format!("ControlPath={}", path.display()));
                }
                if let Some(user) = user {
                    command.args(["-l", user]);
                }
                if let Some(port) = port {
                    command.args(["-p", &port.to_string()]);
                }
                command.args(["--", host, "docker"]);
                if let Some(socket) = socket {
                    command.args(["--host", &format!("unix://{socket}")]);
                }
                command.args(["system", "dial-stdio"]);
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::inherit())
                    .kill_on_drop(true);
                let mut child = command.spawn().map_err(|error| {
                    self.unreachable(&format!("ssh cannot be started: {error}"))
                        .hint("install an OpenSSH client")
                })?;
                match (child.stdin.take(), child.stdout.take()) {
                    (Some(input), Some(output)) => Ok(Box::new(Piped { input, output, _child: child })),
                    _ => Err(self.unreachable("ssh has no input and output")),
                }
            }
        }
    }

    /// Says where, and what named it.
    pub fn unreachable(&self, why: &str) -> Failure {
        let Address { shown, named_by, .. } = &self.address;
        let hint = match self.address.endpoint {
            Endpoint::Ssh { .. } => "try `ssh` to that host by hand; `docker` must be installed there",
            _ => "name a manager's engine: --host ssh://user@manager, --context, or DOCKER_HOST",
        };
        Failure::unreachable(format!("cannot reach the engine {shown} (from {named_by}): {why}")).hint(hint)
    }

    fn no_socket(&self, path: &Path, error: &io::Error) -> Failure {
        let failure = self.unreachable(&error.to_string());
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                failure.hint("run it as root, or as a member of the group `docker`")
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                let text = format!(
                    "is docker running here ({})? Otherwise name a manager's engine: --host ssh://user@manager, or DOCKER_HOST",
                    path.display()
                );
                failure.hint(text)
            }
            _ => failure,
        }
    }
}

/// A process's input and output as one stream; the process ends with it.
struct Piped {
    input: ChildStdin,
    output: ChildStdout,
    _child: Child,
}

impl AsyncRead for Piped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, buf)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(cx)
    }
}

/// A TCP connection. Names are looked up by hickory: a static program has no name service of the system's.
pub async fn tcp(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses: Vec<std::net::IpAddr> = match host.parse() {
        Ok(address) => vec![address],
        Err(_) => {
            let resolver = hickory_resolver::Resolver::builder_tokio()
                .map_err(|error| format!("no name server: {error}"))?;
            let resolver = resolver.build().map_err(|error| format!("no name server: {error}"))?;
            let found = timeout(CONNECT, resolver.lookup_ip(host)).await;
            let found = found.map_err(|_| format!("looking up {host} timed out"))?;
            found.map_err(|error| format!("{host} is not known: {error}"))?.iter().collect()
        }
    };
    let mut why = format!("{host} has no address");
    for address in addresses.into_iter().take(4) {
        match timeout(CONNECT, TcpStream::connect((address, port))).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => why = format!("{address}:{port}: {error}"),
            Err(_) => why = format!("{address}:{port}: no answer within {}s", CONNECT.as_secs()),
        }
    }
    Err(why)
}

/// TLS on top of a connection.
pub async fn secure(
    stream: TcpStream,
    config: rustls::ClientConfig,
    name: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no server name"))?;
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
    let connected =
        timeout(CONNECT, connecting).await.map_err(|_| "the TLS handshake timed out".to_owned())?;
    connected.map_err(|error| format!("TLS: {error}"))
}

fn engine_tls(directory: &Path) -> Outcome<rustls::ClientConfig> {
    let own = Some((directory.join("cert.pem"), directory.join("key.pem"))).filter(|(cert, _)| cert.exists());
    let own = own.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
    client_tls(&directory.join("ca.pem"), own)
}

/// Trusts `ca`, and shows a certificate where one is given.
///
/// # Errors
/// When a file cannot be read or holds something else.
pub fn client_tls(ca: &Path, own: Option<(&Path, &Path)>) -> Outcome<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| bad_file(ca, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::failed(format!("TLS cannot be used: {error}")))?
        .with_root_certificates(roots);
    match own {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad_file(key, &error))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|error| bad_file(cert, &error))
        }
    }
}

fn certificates(file: &Path) -> Outcome<Vec<CertificateDer<'static>>> {
    let text = fs::read(file).map_err(|error| bad_file(file, &error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| bad_file(file, &error))?;
    if found.is_empty() { Err(bad_file(file, &"it holds no certificate")) } else { Ok(found) }
}

fn bad_file(file: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {why}", file.display())).hint("a PEM file is expected")
}
