//! Replicas from Swarm's own DNS: `tasks.<service>` has one address for each running task, whoever else is down.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{Resolver, TokioResolver, config::ResolverConfig, net::runtime::TokioRuntimeProvider};

use super::{Picture, ReplicaPicture, ServicePicture, found_at, labels};

/// Addresses taken from one name.
const MAX_ADDRESSES: usize = 1_024;

/// Resolves names without libc, which a static binary cannot use for that.
#[derive(Debug, Clone)]
pub struct Names {
    resolver: Option<TokioResolver>,
}

/// What a name resolved to; `None` where it could not be asked.
pub type Resolved = BTreeMap<String, Option<Vec<IpAddr>>>;

impl Names {
    /// By `/etc/resolv.conf`; without it only addresses resolve.
    pub fn from_system() -> Self {
        let builder = Resolver::builder(TokioRuntimeProvider::default());
        let built = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            // Tasks come and go faster than any cache should remember.
            options.cache_size = 0;
            options.timeout = Duration::from_secs(1);
            options.attempts = 2;
            builder.build()
        });
        if let Err(error) = &built {
            tracing::warn!(%error, "names cannot be resolved, only addresses work");
        }
        Self { resolver: built.ok() }
    }

    /// By one server only, for tests.
    pub fn from_config(config: ResolverConfig) -> Self {
        let resolver = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).build();
        Self { resolver: resolver.ok() }
    }

    /// All addresses of a name, sorted; `None` where it could not be asked. An address is its own answer.
    pub async fn resolve(&self, name: &str) -> Option<Vec<IpAddr>> {
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return Some(vec![address]);
        }
        let found = match self.resolver.as_ref()?.lookup_ip(name).await {
            Ok(found) => found,
            Err(error) if error.is_no_records_found() => return Some(Vec::new()),
            Err(error) => {
                tracing::debug!(%error, name, "a name does not resolve");
                return None;
            }
        };
        let mut addresses: Vec<IpAddr> = found.iter().take(MAX_ADDRESSES).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Some(addresses)
    }

    /// `tasks.<name>` for each of `services`.
    pub async fn tasks(&self, services: Vec<String>) -> Resolved {
        let mut resolved = Resolved::new();
        for service in services {
            let addresses = self.resolve(&format!("tasks.{service}")).await;
            resolved.insert(service, addresses);
        }
        resolved
    }
}

/// `name:port` or `name`, with `port` where it has none.
pub fn split(text: &str, port: u16) -> (&str, u16) {
    let parsed = text.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
    parsed.unwrap_or((text, port))
}

/// What is known, with replicas as DNS has them now. Where a name could not be asked, what was known stays. `targets`
/// (name and port) are added where nothing was known of them.
pub fn picture<'a>(
    known: impl Iterator<Item = &'a ServicePicture>,
    targets: &[(String, u16)],
    resolved: &Resolved,
) -> Picture {
    let mut services: Vec<ServicePicture> = known.cloned().collect();
    for (name, port) in targets {
        if !services.iter().any(|service| service.name == *name) {
            services.push(ServicePicture {
                id: name.clone(),
                name: name.clone(),
                labels: labels(*port),
                replicas: Vec::new(),
            });
        }
    }
    for service in &mut services {
        // Nobody is there to take a drain back, and DNS does not list what was stopped.
        service.replicas.iter_mut().for_each(|replica| replica.draining = false);
        let Some(Some(addresses)) = resolved.get(&service.name) else { continue };
        // No address at all is more likely a fault of DNS than of every replica at once: health checks tell.
        if addresses.is_empty() {
            continue;
        }
        service.replicas = merge(service, addresses);
    }
    Picture { services }
}

fn merge(service: &ServicePicture, addresses: &[IpAddr]) -> Vec<ReplicaPicture> {
    let known = |address: SocketAddr| service.replicas.iter().find(|it| it.address == address).cloned();
    let sockets = addresses.iter().map(|address| SocketAddr::new(*address, service.labels.port));
    sockets
        .filter_map(|address| {
            let replica = known(address).or_else(|| found_at(address, &address.ip().to_string()))?;
            // Listed by Swarm means running; figures that nobody renews are unknown.
            Some(ReplicaPicture { ready: true, load: None, ..replica })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn known_replicas_keep_their_names_and_new_ones_join() {
        let mut known =
            ServicePicture { id: "x1".into(), name: "web".into(), labels: labels(80), replicas: vec![] };
        for text in ["10.0.0.1:80", "10.0.0.2:80"] {
            known.replicas.extend(found_at(text.parse().expect("an address"), "n"));
        }
        known.replicas[0].draining = true;
        known.replicas[0].task = "realtask".parse().expect("letters");
        let resolved =
            Resolved::from([("web".to_owned(), Some(vec![address("10.0.0.1"), address("10.0.0.3")]))]);
        let made = picture([&known].into_iter(), &[("other".into(), 90)], &resolved);
        let [web, other] = made.services.as_slice() else { panic!("two services: {made:?}") };
        assert_eq!(web.replicas.len(), 2);
        assert_eq!(web.replicas[0].task.as_str(), "realtask");
        assert!(!web.replicas[0].draining);
        assert_eq!(web.replicas[1].address, "10.0.0.3:80".parse().expect("an address"));
        assert_eq!((other.name.as_str(), other.labels.port), ("other", 90));
    }

    #[test]
    fn where_dns_is_silent_what_was_known_stays() {
        let mut known =
            ServicePicture { id: "x1".into(), name: "web".into(), labels: labels(80), replicas: vec![] };
        known.replicas.extend(found_at("10.0.0.1:80".parse().expect("an address"), "n"));
        for answer in [None, Some(vec![])] {
            let resolved = Resolved::from([("web".to_owned(), answer)]);
            assert_eq!(picture([&known].into_iter(), &[], &resolved).services, [known.clone()]);
        }
    }

    #[test]
    fn ports_are_split_off() {
        assert_eq!(split("web:90", 80), ("web", 90));
        assert_eq!(split("web", 80), ("web", 80));
    }
}
