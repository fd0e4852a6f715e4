//! Where the coordinators are: the managers that the local engine knows, or a list of hosts and ports.
//!
//! Host names are resolved here and not by the C library: a statically linked binary has none that could.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use hickory_resolver::Resolver;

use crate::discovery::engine::Engine;

/// The port that coordinators listen on unless a list says otherwise.
pub const DEFAULT_PORT: u16 = 7443;

/// Where coordinators are to be looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// At every manager that the engine knows.
    Auto,
    /// At these hosts and ports.
    List(Vec<(String, u16)>),
    /// Nowhere: the agent only serves its own HTTP interface.
    None,
}

impl FromStr for Wanted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            list => {
                let hosts: Option<Vec<_>> = list.split(',').map(|item| host_and_port(item.trim())).collect();
                hosts
                    .map(Self::List)
                    .ok_or_else(|| "auto, none, or a comma-separated list of host[:port] is allowed".into())
            }
        }
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some((address.ip().to_string(), address.port())).filter(|(_, port)| *port > 0);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((ip.to_string(), DEFAULT_PORT));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
        None => (text, DEFAULT_PORT),
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    ((1..=253).contains(&host.len()) && host.bytes().all(allowed)).then(|| (host.to_owned(), port))
}

/// Finds the coordinators' addresses.
#[derive(Clone)]
pub struct Addresses {
    wanted: Wanted,
    engine: Option<Engine>,
    resolver: Option<hickory_resolver::TokioResolver>,
}

impl Addresses {
    /// `engine` is asked where `wanted` is [`Wanted::Auto`].
    pub fn new(wanted: Wanted, engine: Option<Engine>) -> Self {
        let named = matches!(&wanted, Wanted::List(list) if list.iter().any(|(host, _)| host.parse::<IpAddr>().is_err()));
        let resolver = named.then(|| Resolver::builder_tokio().and_then(|builder| builder.build()));
        let resolver = resolver.and_then(|built| match built {
            Ok(resolver) => Some(resolver),
            Err(error) => {
                tracing::error!("host names of coordinators cannot be resolved: {error}");
                None
            }
        });
        Self { wanted, engine, resolver }
    }

    /// The addresses now; those that cannot be found out are left out.
    pub async fn current(&self) -> BTreeSet<SocketAddr> {
        match &self.wanted {
            Wanted::None => BTreeSet::new(),
            Wanted::Auto => match &self.engine {
                Some(engine) => {
                    engine.managers().await.into_iter().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)).collect()
                }
                None => BTreeSet::new(),
            },
            Wanted::List(list) => {
                let mut found = BTreeSet::new();
                for (host, port) in list {
                    found.extend(self.resolve(host).await.into_iter().map(|ip| SocketAddr::new(ip, *port)));
                }
                found
            }
        }
    }

    async fn resolve(&self, host: &str) -> Vec<IpAddr> {
        if let Ok(ip) = host.parse() {
            return vec![ip];
        }
        let Some(resolver) = &self.resolver else { return Vec::new() };
        match resolver.lookup_ip(host).await {
            Ok(answer) => answer.iter().collect(),
            Err(error) => {
                tracing::warn!(host, "cannot resolve the coordinator's name: {error}");
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_nonsense_is_refused() {
        assert_eq!("auto".parse(), Ok(Wanted::Auto));
        assert_eq!("none".parse(), Ok(Wanted::None));
        let list = Wanted::List(vec![
            ("10.0.0.1".into(), 7_443),
            ("manager-1.local".into(), 99),
            ("::1".into(), 5),
            ("fd00::2".into(), 7_443),
        ]);
        assert_eq!("10.0.0.1, manager-1.local:99,[::1]:5,fd00::2".parse(), Ok(list));
        for bad in ["", "a,,b", "host:0", "10.0.0.1:0", "[::1]:0", "host:99999", "ho st", "host:port", "/x"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad:?}");
        }
    }
}
