//! Which service a request is for: by host, then by the longest path, then by weight.

use std::{collections::HashMap, sync::Arc};

use fastrand::Rng;

use crate::service::Service;

/// All services at one moment, ready for look-up.
#[derive(Debug, Default)]
pub struct Table {
    /// Every service, in order of their IDs.
    pub services: Vec<Arc<Service>>,
    exact: HashMap<String, Vec<Arc<Service>>>,
    /// Suffixes with their leading dot, longest first.
    wildcard: Vec<(String, Vec<Arc<Service>>)>,
    any: Vec<Arc<Service>>,
}

/// Longest host name looked up, in bytes (RFC 1035).
const MAX_HOST_BYTES: usize = 253;

impl Table {
    /// Sorts the services so that the first match is the right one.
    pub fn new(services: Vec<Arc<Service>>) -> Self {
        let mut table = Self { services: services.clone(), ..Self::default() };
        for service in services {
            if service.labels.hosts.is_empty() {
                table.any.push(Arc::clone(&service));
            }
            for host in &service.labels.hosts {
                let list = match host.strip_prefix('*') {
                    Some("") => &mut table.any,
                    Some(suffix) => table.wildcard_list(suffix),
                    None => table.exact.entry(host.clone()).or_default(),
                };
                list.push(Arc::clone(&service));
            }
        }
        table.wildcard.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        let exact = table.exact.values_mut();
        let wildcard = table.wildcard.iter_mut().map(|(_, list)| list);
        for list in exact.chain(wildcard).chain([&mut table.any]) {
            list.sort_by_key(|service| std::cmp::Reverse(service.labels.path.len()));
        }
        table
    }

    fn wildcard_list(&mut self, suffix: &str) -> &mut Vec<Arc<Service>> {
        let at = self.wildcard.iter().position(|(known, _)| known == suffix).unwrap_or_else(|| {
            self.wildcard.push((suffix.into(), Vec::new()));
            self.wildcard.len() - 1
        });
        &mut self.wildcard[at].1
    }

    /// The service for a request; `host` as it stands in the request, a port included.
    pub fn find(&self, host: &str, path: &str, rng: &mut Rng) -> Option<&Arc<Service>> {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return among(&self.any, path, rng);
        }
        let mut lower = [0_u8; MAX_HOST_BYTES];
        let host = without_port(host).trim_end_matches('.');
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        let host = std::str::from_utf8(lower).ok()?;
        let exact = self.exact.get(host).and_then(|list| among(list, path, rng));
        exact
            .or_else(|| {
                let matching = self.wildcard.iter().filter(|(suffix, _)| host.ends_with(suffix.as_str()));
                matching.into_iter().find_map(|(_, list)| among(list, path, rng))
            })
            .or_else(|| among(&self.any, path, rng))
    }
}

/// `example.org:8081` and `[::1]:8081` without the port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// The service with the longest path that `path` is below; several with the same share by weight.
fn among<'a>(list: &'a [Arc<Service>], path: &str, rng: &mut Rng) -> Option<&'a Arc<Service>> {
    let usable = |service: &&Arc<Service>| service.labels.weight > 0 && is_below(path, &service.labels.path);
    let mut matching = list.iter().filter(usable);
    let first = matching.next()?;
    let mut total = first.labels.weight;
    let mut chosen = first;
    for other in matching.take_while(|other| other.labels.path.len() == first.labels.path.len()) {
        total += other.labels.weight;
        if rng.u32(..total) < other.labels.weight {
            chosen = other;
        }
    }
    Some(chosen)
}

/// Whether `path` is `prefix` or below it; `/apix` is not below `/api`.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| {
        prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/') || rest.starts_with('?')
    })
}

#[cfg(test)]
mod tests {
    use swarmguard_common::labels::ServicePolicy;

    use super::*;
    use crate::service::Shared;

    fn service(name: &str, labels: &[(&str, &str)]) -> Arc<Service> {
        let mut all: Vec<(String, &str)> =
            labels.iter().map(|(key, value)| (format!("swarmguard.lb.{key}"), *value)).collect();
        all.push(("swarmguard.lb.port".into(), "80"));
        let policy = ServicePolicy::from_labels(all.iter().map(|(key, value)| (key.as_str(), *value)));
        let labels = policy.expect("sensible labels").route.expect("a route");
        Arc::new(Service {
            name: name.into(),
            algorithm: labels.algorithm.unwrap_or_default(),
            labels,
            cookie: String::new(),
            replicas: Vec::new(),
            limit: None,
            clients: None,
            shared: Arc::new(Shared::default()),
        })
    }

    fn found(table: &Table, host: &str, path: &str) -> Option<String> {
        table.find(host, path, &mut Rng::with_seed(1)).map(|service| service.name.clone())
    }

    #[test]
    fn host_beats_wildcard_beats_any_and_the_longest_path_wins() {
        let table = Table::new(vec![
            service("any", &[]),
            service("api", &[("path", "/api")]),
            service("shop", &[("host", "shop.example.org,www.example.org")]),
            service("star", &[("host", "*.example.org")]),
        ]);
        assert_eq!(found(&table, "SHOP.example.org:8081", "/api").as_deref(), Some("shop"));
        assert_eq!(found(&table, "x.example.org", "/").as_deref(), Some("star"));
        assert_eq!(found(&table, "else.where", "/api/v1").as_deref(), Some("api"));
        assert_eq!(found(&table, "else.where", "/apix").as_deref(), Some("any"));
        assert_eq!(found(&table, "[::1]:80", "/api?x").as_deref(), Some("api"));
    }

    #[test]
    fn nothing_matches_an_unknown_host() {
        let table = Table::new(vec![service("shop", &[("host", "shop.example.org")])]);
        assert_eq!(found(&table, "else.where", "/"), None);
        assert_eq!(found(&table, &"x".repeat(300), "/"), None);
    }

    #[test]
    fn weights_share_a_route() {
        let table = Table::new(vec![
            service("a", &[("weight", "9")]),
            service("b", &[]),
            service("c", &[("weight", "0")]),
        ]);
        let mut rng = Rng::with_seed(2);
        let a =
            (0..10_000).filter(|_| table.find("h", "/", &mut rng).is_some_and(|it| it.name == "a")).count();
        assert!((8_800..9_200).contains(&a), "{a} of 10,000");
    }
}
