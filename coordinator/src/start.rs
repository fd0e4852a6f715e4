//! Puts the parts of a coordinator together, keeps its certificate fresh, and ends it in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use quinn::Endpoint;
use swarmguard_common::{api::SwarmName, domain::Role};
use swarmguard_core::brain::{self, Brain};
use swarmguard_runtime::{
    clock,
    identity::{Identity, Source},
    transport,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    api::{self, Access, Api, Forward, forward, server},
    config::{NamedFile, Settings},
    glance::Glance,
    ingest::{self, Ingest, hub::Hub, token::Token},
    journal::{self, Journal},
    metrics::Metrics,
    notify::{self, Notify},
    proxies::{Askers, agent_check},
    run::{Handle, Parts, Runner},
    seam::SwarmApi,
    swarm::Client,
};

/// How often the certificate's files are looked at.
const CERTIFICATE_RHYTHM: Duration = Duration::from_secs(15);
/// Time before its end from which a certificate that was not replaced is told in the journal.
const EXPIRES_SOON: Duration = Duration::from_secs(24 * 3_600);
/// Longest that the end may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a coordinator is made of, apart from the settings' texts: so that tests and measurements can put one together
/// around a swarm that is not there.
pub struct Assembly<S> {
    /// Who we are.
    pub identity: Identity,
    /// Swarm.
    pub swarm: Arc<S>,
    /// How the judgement is set up.
    pub brain: brain::Settings,
    /// The journal.
    pub journal: journal::Settings,
    /// What peers may cost.
    pub limits: ingest::Limits,
    /// Lets balancers in.
    pub balancer_token: Option<Token>,
    /// Who is let in at the API.
    pub access: Access,
    /// Who is told what happens.
    pub notify: Option<notify::settings::Settings>,
    /// A name of the swarm for people.
    pub swarm_name: Option<String>,
    /// Address for agents and balancers.
    pub quic: SocketAddr,
    /// Address of the API.
    pub api: SocketAddr,
    /// Unix socket of the API.
    pub socket: Option<PathBuf>,
    /// Where HAProxy asks (`agent-check`).
    pub agent_check: Option<SocketAddr>,
}

/// A coordinator at work.
pub struct Running {
    /// Where agents and balancers find it.
    pub quic: SocketAddr,
    /// Where the API is.
    pub api: SocketAddr,
    /// Where HAProxy asks.
    pub agent_check: Option<SocketAddr>,
    /// Its figures.
    pub metrics: Arc<Metrics>,
    /// The way to its loop.
    pub handle: Handle,
    /// Its journal.
    pub journal: Journal,
    endpoint: Endpoint,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
    to_others: watch::Sender<Arc<rustls::ClientConfig>>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
    serving: JoinHandle<()>,
    answering: JoinHandle<()>,
}

impl<S: SwarmApi> Assembly<S> {
    /// Binds the addresses and starts everything.
    ///
    /// # Errors
    /// When the certificate or an address cannot be used.
    pub async fn start(self) -> anyhow::Result<Running> {
        let metrics = Metrics::new();
        let quic_config = transport::server_config(self.identity.server_config()?)?;
        let endpoint = transport::bind(self.quic, Some(quic_config))?;
        let bound = TcpListener::bind(self.api).await;
        let listener = bound.with_context(|| format!("cannot listen on TCP {}", self.api))?;
        let (quic, api_addr) = (endpoint.local_addr()?, listener.local_addr()?);
        let (tls, tls_now) = watch::channel(server::tls_config(self.identity.server_config()?));
        let (to_others, to_others_now) = watch::channel(forward::tls_config(self.identity.client_config()?));

        let (journal, notices) = journal::open(&self.journal, Arc::clone(&metrics));
        if let Some(settings) = self.notify {
            let started = Notify::start(notify::Start {
                settings,
                dir: self.journal.dir.clone(),
                swarm: self.swarm_name.clone().unwrap_or_else(|| self.identity.own.cluster.clone()),
                origin: self.identity.own.name.clone(),
                window: notify::MINUTE,
                metrics: Arc::clone(&metrics),
            });
            match started {
                Ok(notify) => journal.tell(notify),
                Err(why) => drop(journal.notice("notify_invalid", format!("nobody is notified: {why}"))),
            }
        }
        let hub = Arc::new(Hub::default());
        let cluster = self.identity.own.cluster.clone();
        let (ingest, inputs) = Ingest::new(
            self.limits,
            cluster.clone(),
            self.balancer_token,
            Arc::clone(&hub),
            Arc::clone(&metrics),
        );
        let glance = Glance::new(SwarmName { id: cluster.clone(), name: self.swarm_name });
        glance.wait_for(Arc::new(Askers::new(Arc::clone(&hub))));
        let agent_check = match self.agent_check {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                let listener = bound.with_context(|| format!("cannot listen on TCP {address}"))?;
                let at = listener.local_addr()?;
                tokio::spawn(agent_check::serve(listener, Arc::clone(&glance)));
                Some(at)
            }
            None => None,
        };
        let (runner, handle) = Runner::new(Parts {
            brain: Brain::new(self.brain),
            swarm: self.swarm,
            inputs,
            hub,
            journal: journal.clone(),
            notices,
            metrics: Arc::clone(&metrics),
            glance: Arc::clone(&glance),
        });
        let forward = Forward { tls: to_others_now, port: api_addr.port() };
        let api = Api::new(
            handle.clone(),
            journal.clone(),
            Arc::clone(&metrics),
            self.access,
            glance,
            Some(forward),
        );
        let router = api::router(api);
        let (stop, stopped) = watch::channel(false);
        if let Some(path) = self.socket {
            match api::socket::bind(&path) {
                Ok(listener) => {
                    tokio::spawn(api::socket::serve(listener, path, router.clone(), stopped.clone()));
                }
                // The command line then needs the port; protection goes on without it.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "no socket for the command line");
                }
            }
        }
        Ok(Running {
            quic,
            api: api_addr,
            agent_check,
            metrics,
            handle,
            journal,
            tls,
            to_others,
            stop,
            serving: tokio::spawn(ingest.serve(endpoint.clone())),
            answering: tokio::spawn(server::serve(listener, router, cluster, tls_now, stopped.clone())),
            running: tokio::spawn(runner.run(stopped)),
            endpoint,
        })
    }
}

impl Running {
    /// Runs until `asked`, then ends in order. What is under way is left to its records in Swarm.
    ///
    /// # Errors
    /// When the loop broke: then only a restart helps.
    pub async fn until(mut self, asked: impl Future<Output = ()>) -> anyhow::Result<()> {
        let broke = tokio::select! {
            ended = &mut self.running => Some(ended),
            () = asked => None,
        };
        // Nothing listens only when everything has ended already.
        let _ = self.stop.send(true);
        match broke {
            Some(ended) => ended.context("the loop broke")?,
            None => drop(tokio::time::timeout(FAREWELL, self.running).await),
        }
        let _ = tokio::time::timeout(FAREWELL, ingest::close(&self.endpoint)).await;
        let _ = tokio::time::timeout(FAREWELL, async { tokio::join!(self.serving, self.answering) }).await;
        Ok(())
    }
}

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
    let swarm = Client::new(&settings.docker).context("--docker")?;
    swarm.watch();
    let asked = asked_to_stop()?;
    let notify = settings.notify_file.as_ref().and_then(|file| file.0.as_deref());
    let notify = notify.map(notify::settings::Settings::load).transpose();
    let assembly = Assembly {
        swarm,
        brain: brain_settings(&settings, &identity.own.name),
        journal: journal::Settings {
            dir: settings.journal_dir(),
            max_bytes: settings.journal_mib * 1024 * 1024,
            ..journal::Settings::default()
        },
        limits: ingest::Limits::default(),
        balancer_token: token_of(settings.balancer_token_file.as_ref())?,
        access: Access {
            token: token_of(settings.operator_token_file.as_ref())?,
            reader_token: token_of(settings.reader_token_file.as_ref())?,
            plain: settings.api_plain,
            open_reads: settings.open_reads,
            hosts: settings.api_hosts.iter().filter(|host| !host.is_empty()).cloned().collect(),
        },
        notify: notify.as_ref().ok().cloned().flatten(),
        swarm_name: settings.swarm_name.clone().filter(|name| !name.is_empty()),
        quic: settings.quic_addr,
        api: settings.api_addr,
        socket: settings.api_socket.0,
        agent_check: settings.agent_check_addr.0,
        identity,
    };
    let (node, observe) = (assembly.identity.own.name.clone(), settings.observe);
    let running = assembly.start().await?;
    // Protection does not depend on it.
    if let Err(why) = notify {
        running.journal.notice("notify_invalid", format!("nobody is notified, --notify-file: {why}"));
    }
    tracing::info!(node, quic = %running.quic, api = %running.api, observe, "the coordinator starts");
    let freshness = Freshness {
        identity: Identity::load(&settings.identity).context("no identity")?,
        source: settings.identity,
        endpoint: running.endpoint.clone(),
        tls: running.tls.clone(),
        to_others: running.to_others.clone(),
        metrics: Arc::clone(&running.metrics),
        journal: running.journal.clone(),
        warned: false,
    };
    let renewing = tokio::spawn(freshness.keep());
    let ended = running.until(asked).await;
    renewing.abort();
    tracing::info!("the coordinator ends; what is under way is left to its records in Swarm");
    ended
}

fn brain_settings(settings: &Settings, node: &str) -> brain::Settings {
    // Unique at every start: nothing of an earlier life is taken for ours.
    let mut brain = brain::Settings::new(format!("{node}.{}", clock::wall_ms()));
    brain.observe = settings.observe;
    brain.max_actions = usize::from(settings.max_actions);
    brain
}

fn token_of(file: Option<&NamedFile>) -> anyhow::Result<Option<Token>> {
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
    to_others: watch::Sender<Arc<rustls::ClientConfig>>,
    metrics: Arc<Metrics>,
    journal: Journal,
    /// Whether the journal says already that this certificate ends soon.
    warned: bool,
}

impl Freshness {
    async fn keep(mut self) {
        let mut stamp = Identity::stamp(&self.source);
        loop {
            #[expect(clippy::cast_precision_loss, reason = "seconds need no more than 53 bits")]
            self.metrics.certificate_expiry.set(self.identity.own.expires_at as f64);
            self.warn();
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
                    tracing::warn!("the new certificate cannot be used, the old one stays: {error:#}");
                }
            }
        }
    }

    /// Says once that the certificate ends soon. Swarm replaces its own after half of their time, so this one is late.
    fn warn(&mut self) {
        let left = self.identity.valid_for();
        if left < EXPIRES_SOON && !std::mem::replace(&mut self.warned, true) {
            let (source, hours) = (&self.source, left.as_secs() / 3_600);
            let text = format!(
                "the certificate in {source} ends in {hours} h and was not replaced; after that no agent connects: \
                 docker swarm ca --rotate, or new files, renew it"
            );
            self.journal.notice("certificate_expires", text);
        }
    }

    fn renew(&mut self) -> anyhow::Result<()> {
        let identity = Identity::load(&self.source)?;
        if !identity.own.may(Role::Coordinator) {
            bail!("it is not a manager's");
        }
        self.endpoint.set_server_config(Some(transport::server_config(identity.server_config()?)?));
        self.tls.send_replace(server::tls_config(identity.server_config()?));
        self.to_others.send_replace(forward::tls_config(identity.client_config()?));
        self.identity = identity;
        self.warned = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_runtime::identity::{Unit, issue::Authority};

    use super::*;

    /// Whether somebody who trusts the authority in `dir` is let in.
    async fn trusted(dir: &std::path::Path, to: SocketAddr) -> bool {
        let identity = Identity::load(&Source::Files(dir.into())).expect("loads");
        let config = transport::client_config(identity.client_config().expect("usable")).expect("usable");
        let endpoint = transport::bind("127.0.0.1:0".parse().expect("an address"), None).expect("bound");
        let connected = endpoint.connect_with(config, to, "swarm-manager").expect("startable").await;
        // With TLS 1.3 the client is done first; that the server is content shows when it does not hang up.
        match connected {
            Ok(connection) => connection.open_bi().await.is_ok(),
            Err(_) => false,
        }
    }

    #[tokio::test]
    async fn a_replaced_certificate_is_used_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, second) = (Authority::create("c").expect("made"), Authority::create("c").expect("made"));
        let (own, old, new) = (dir.path().join("own"), dir.path().join("old"), dir.path().join("new"));
        for (authority, at, unit) in
            [(&first, &own, Unit::Manager), (&first, &old, Unit::Worker), (&second, &new, Unit::Worker)]
        {
            std::fs::create_dir(at).expect("made");
            authority.issue("n1", unit, at).expect("issued");
        }
        let source = Source::Files(own.clone());
        let identity = Identity::load(&source).expect("loads");
        let config = transport::server_config(identity.server_config().expect("usable")).expect("usable");
        let endpoint =
            transport::bind("127.0.0.1:0".parse().expect("an address"), Some(config)).expect("bound");
        let (address, accepting) = (endpoint.local_addr().expect("bound"), endpoint.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        connection.closed().await;
                    }
                });
            }
        });
        let (tls, tls_now) = watch::channel(server::tls_config(identity.server_config().expect("usable")));
        let before = Arc::as_ptr(&tls_now.borrow());
        let (journal, _notices) = journal::open(&journal::Settings::default(), Metrics::new());
        let metrics = Metrics::new();
        let (to_others, _to_others_now) =
            watch::channel(forward::tls_config(identity.client_config().expect("usable")));
        let mut freshness = Freshness {
            source,
            identity,
            endpoint,
            tls,
            to_others,
            metrics,
            journal: journal.clone(),
            warned: false,
        };
        freshness.warn();
        assert_eq!(journal.next_id(), 1, "a year is left");
        freshness.identity.own.expires_at = i64::try_from(clock::wall_ms() / 1_000).expect("small") + 3_600;
        freshness.warn();
        freshness.warn();
        assert_eq!(journal.next_id(), 2, "an hour is told, and once");
        assert!(trusted(&old, address).await && !trusted(&new, address).await);

        let stamp = Identity::stamp(&freshness.source);
        std::fs::write(own.join("cert.pem"), "half a certifi").expect("written");
        assert_ne!(Identity::stamp(&freshness.source), stamp, "a change is noticed");
        assert!(freshness.renew().is_err());
        assert!(trusted(&old, address).await, "the old one stays");
        first.issue("n1", Unit::Worker, &own).expect("issued");
        assert!(freshness.renew().expect_err("demoted").to_string().contains("manager"));

        second.issue("n1", Unit::Manager, &own).expect("issued");
        freshness.renew().expect("good");
        assert!(trusted(&new, address).await && !trusted(&old, address).await);
        assert_ne!(Arc::as_ptr(&tls_now.borrow()), before, "the API has it too");
    }
}
