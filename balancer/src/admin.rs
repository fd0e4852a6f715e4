//! `/metrics` and `/healthz` on an address of their own. Swarm's health checks ask elsewhere ([`swarmguard_runtime::health`]):
//! whoever can reach that address could take all its places, and Swarm would restart what is well.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use swarmguard_runtime::{health::Health, http::serve_figures};
use tokio::net::TcpListener;

use crate::proxy::{Global, answer};

/// What this program is called where health checks ask for it.
pub const HEALTH_NAME: &str = "balancer";

/// Serves until the process ends.
pub async fn run(global: Arc<Global>, listener: TcpListener) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&global, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    serve_figures(listener, service).await;
}

fn respond(global: &Global, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let own = answer::own(global, request.uri().path(), request.headers(), Full::new);
    own.unwrap_or_else(|| answer::error(StatusCode::NOT_FOUND, "here are /metrics and /healthz", Full::new))
}

/// How the balancer is, for Swarm's own checks.
pub fn health(global: &Global) -> Health {
    let (well, said) = if *global.closing.borrow() {
        (false, "stopping")
    } else if !global.ready() {
        (false, "no service is known, and no coordinator can be reached")
    } else {
        (true, "ok")
    };
    Health { well, said: said.into() }
}
