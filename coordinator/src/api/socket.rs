//! The API on a unix socket that only root may open: the way in for whoever may use this manager's engine.
//!
//! Who may use the engine of a manager is root on the whole swarm already, so no further secret is asked for: the command
//! line runs `swarmguard-coordinator stdio` in this container through the engine, which joins its own input and output to
//! this socket ([`crate::bridge`]).

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
};

use super::{Via, server::requests};

/// Connections at once: each command line in use has one or two.
const MAX_CONNECTIONS: usize = 64;
/// Names who gives a command, for the journal. Believed here only.
const OPERATOR: &str = "swarmguard-operator";
/// Longest such name, in characters.
const MAX_NAME: usize = 64;

/// Listens at `path`, in a directory that only we may enter. What an earlier life left there is replaced.
///
/// # Errors
/// When the directory or the socket cannot be made.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop` says so, and then removes the socket.
pub async fn serve(listener: UnixListener, path: PathBuf, router: Router, mut stop: watch::Receiver<bool>) {
    let router = router.layer(middleware::from_fn(name_operator));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        if !is_trusted(&stream) {
            tracing::warn!("a process that is not root's opened the API's socket and was sent away");
            continue;
        }
        let (router, stop) = (router.clone(), stop.clone());
        tokio::spawn(async move {
            let _ = requests(stream, local("an operator".into()), router, stop).await;
            drop(place);
        });
    }
    let _ = fs::remove_file(path);
}

/// The socket's mode keeps others out already; a wrong mode of a mounted directory is not to open it.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// As the access rules see it: from this machine, by an operator.
fn local(name: String) -> Via {
    Via {
        peer: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        tls: false,
        operator: Some(name),
        manager: None,
    }
}

async fn name_operator(mut request: Request, next: Next) -> Response {
    let said = request.headers().get(OPERATOR).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(name) = said.filter(|name| !name.is_empty()) {
        let name: String =
            name.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_NAME).collect();
        request.extensions_mut().insert(local(name));
    }
    next.run(request).await
}
