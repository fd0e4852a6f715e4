//! Puts the parts of a coordinator together, keeps its certificate fresh, and ends it in order.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use quinn::Endpoint;
use swarmguard_common::{
    clock,
    domain::Role,
    identity::{Identity, Source},
    transport,
};
use swarmguard_core::brain::{self, Brain};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    api::{self, Api, server},
    config::{Settings, TokenFile},
    ingest::{self, Ingest, hub::Hub, token::Token},
    journal,
    metrics::Metrics,
    run::{Parts, Runner},
    swarm::Client,
};

/// How often the certificate's files are looked at.
const CERTIFICATE_RHYTHM: Duration = Duration::from_secs(15);
/// Longest that the end may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When a setting, the certificate or an address cannot be used.
pub async fn coordinate(settings: Settings) -> anyhow::Result<()> {
    let identity = Identity::load(&settings.identity).context("no identity")?;
    if !identity.own.may(Role::Coordinator) {
        bail!(
            "the certificate in {} is not a manager's: coordinators run on managers only \
             (placement constraint node.role == manager)",
            settings.identity
        );
    }
    let balancer_token = token_of(settings.balancer_token_file.as_ref())?;
    let operator_token = token_of(settings.operator_token_file.as_ref())?;
    let client = Client::new(&settings.docker).context("--docker")?;
    client.watch();

    let metrics = Metrics::new();
    let journal_settings = journal::Settings {
        dir: settings.journal_dir(),
        max_bytes: settings.journal_mib * 1024 * 1024,
        ..journal::Settings::default()
    };
    let (journal, notices) = journal::open(&journal_settings, Arc::clone(&metrics));
    let hub = Arc::new(Hub::default());
    let limits = ingest::Limits::default();
    let cluster = identity.own.cluster.clone();
    let (ingest, inputs) =
        Ingest::new(limits, cluster, balancer_token, Arc::clone(&hub), Arc::clone(&metrics));

    let endpoint =
        transport::bind(settings.quic_addr, Some(transport::server_config(identity.server_config()?)?))?;
    let listener = TcpListener::bind(settings.api_addr)
        .await
        .with_context(|| format!("cannot listen on TCP {}", settings.api_addr))?;
    let (tls, tls_now) = watch::channel(server::tls_config(identity.server_config()?));

    let brain = Brain::new(brain_settings(&settings, &identity.own.name));
    let parts = Parts {
        brain,
        swarm: client,
        inputs,
        hub,
        journal: journal.clone(),
        notices,
        metrics: Arc::clone(&metrics),
    };
    let (runner, handle) = Runner::new(parts);
    let api = Api::new(handle, journal, Arc::clone(&metrics), operator_token, settings.api_plain);

    let (stop, stopped) = watch::channel(false);
    tracing::info!(
        node = identity.own.name,
        quic = %settings.quic_addr,
        api = %settings.api_addr,
        observe = settings.observe,
        "the coordinator starts"
    );
    let serving = tokio::spawn(ingest.serve(endpoint.clone()));
    let answering = tokio::spawn(server::serve(listener, api::router(api), tls_now, stopped.clone()));
    let freshness =
        Freshness { source: settings.identity, identity, endpoint: endpoint.clone(), tls, metrics };
    let renewing = tokio::spawn(freshness.keep());
    let mut running = tokio::spawn(runner.run(stopped));

    let ended = tokio::select! {
        ended = &mut running => Some(ended),
        () = asked_to_stop()? => None,
    };
    renewing.abort();
    // Nothing listens only when everything has ended already.
    let _ = stop.send(true);
    match ended {
        // The loop ends only when told to: whatever this is, a restart is the way out.
        Some(ended) => ended.context("the loop broke")?,
        None => {
            tracing::info!("asked to stop: what is under way is left to its records in Swarm");
            let _ = tokio::time::timeout(FAREWELL, running).await;
        }
    }
    let _ = tokio::time::timeout(FAREWELL, ingest::close(&endpoint)).await;
    let _ = tokio::time::timeout(FAREWELL, async { tokio::join!(serving, answering) }).await;
    Ok(())
}

fn brain_settings(settings: &Settings, node: &str) -> brain::Settings {
    // Unique at every start: nothing of an earlier life is taken for ours.
    let mut brain = brain::Settings::new(format!("{node}.{}", clock::wall_ms()));
    brain.observe = settings.observe;
    brain.max_actions = usize::from(settings.max_actions);
    brain
}

fn token_of(file: Option<&TokenFile>) -> anyhow::Result<Option<Token>> {
    let path: Option<&PathBuf> = file.and_then(|file| file.0.as_ref());
    Ok(path.map(|path| Token::from_file(path)).transpose()?)
}

fn asked_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Swarm replaces certificates by itself; connections that stand are not disturbed by that, new ones get the new one.
struct Freshness {
    source: Source,
    identity: Identity,
    endpoint: Endpoint,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
    metrics: Arc<Metrics>,
}

impl Freshness {
    async fn keep(mut self) {
        let mut stamp = Identity::stamp(&self.source);
        loop {
            self.metrics.certificate_left.set(self.identity.valid_for().as_secs_f64());
            tokio::time::sleep(CERTIFICATE_RHYTHM).await;
            let now = Identity::stamp(&self.source);
            if now == stamp {
                continue;
            }
            match self.renew() {
                Ok(()) => {
                    stamp = now;
                    tracing::info!(
                        valid_s = self.identity.valid_for().as_secs(),
                        "the certificate was replaced"
                    );
                }
                // Perhaps written just now; looked at again the next time.
                Err(error) => {
                    tracing::warn!("the new certificate cannot be used, the old one stays: {error:#}")
                }
            }
        }
    }

    fn renew(&mut self) -> anyhow::Result<()> {
        let identity = Identity::load(&self.source)?;
        if !identity.own.may(Role::Coordinator) {
            bail!("it is not a manager's");
        }
        self.endpoint.set_server_config(Some(transport::server_config(identity.server_config()?)?));
        self.tls.send_replace(server::tls_config(identity.server_config()?));
        self.identity = identity;
        Ok(())
    }
}
