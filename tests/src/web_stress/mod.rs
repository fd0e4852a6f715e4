//! The web-stress workload: a web service that can be told to burn CPU, hold memory or send bytes, stays answerable
//! meanwhile, and leaves without dropping a request.
//!
//! Written for this and not taken from a stress tool, because what it must imitate is a well-behaved service under
//! load: one that answers, reports its health, starts slowly if told so, and drains on SIGTERM.

pub mod allowance;
pub mod args;
pub mod check;
pub mod cpu;
pub mod drain;
pub mod loads;
pub mod memory;
pub mod network;
pub mod query;
pub mod routes;

use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use args::Serve;
use cpu::{CpuLoad, CpuPlan};

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Where the address cannot be listened on or signals cannot be caught.
pub async fn serve(serve: Serve) -> anyhow::Result<()> {
    // Before anything else: process 1 of a container ignores signals that it does not handle.
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let told_to_stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(told_to_stop);

    let started = tokio::time::Instant::now();
    tokio::select! {
        () = &mut told_to_stop => return Ok(()),
        () = tokio::time::sleep(serve.start_delay) => {}
    }
    // Held until the end; nobody can ask for another one in its place.
    let busy = (serve.busy > 0.0).then(|| CpuLoad::start(always(&serve))).transpose();
    let busy = busy.context("cannot start the threads of --busy")?;
    let listener = TcpListener::bind(serve.addr)
        .await
        .with_context(|| format!("cannot listen on {} (--addr, WEB_STRESS_ADDR)", serve.addr))?;
    let (drain, draining) = watch::channel(false);
    let app = routes::router(routes::App::new(&serve, started, draining.clone()));
    info!(addr = %serve.addr, allowance_cpus = serve.allowance(), "web-stress serves");
    let limits = drain::Limits { linger: serve.linger, timeout: serve.drain_timeout };
    let stop = async move {
        told_to_stop.await;
        info!("told to stop, draining");
        let _ = drain.send(true);
    };
    let left = drain::serve(listener, app, draining, stop, limits).await;
    drop(busy);
    info!(connections_cut = left, "web-stress ends");
    Ok(())
}

/// What `--busy` burns, for longer than any test takes.
fn always(serve: &Serve) -> CpuPlan {
    CpuPlan {
        target_percent: serve.busy,
        allowance_cpus: serve.allowance(),
        duration: Duration::from_secs(7 * 24 * 3600),
        ramp: Duration::ZERO,
    }
}
