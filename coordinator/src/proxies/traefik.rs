//! Traefik's HTTP provider: routers and weighted servers as it polls them. A replica that is about to be stopped is left out.
//!
//! Services are those with `swarmguard.lb.port`, and those with Traefik's own labels (`traefik.enable=true`,
//! `traefik.http.routers.<name>.rule`, `….entrypoints`, `….middlewares`, `….priority`, `….tls`, `….tls.certresolver`,
//! `traefik.http.services.<name>.loadbalancer.server.port`, `….scheme`); where both are there, Traefik's count.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value, json};
use swarmguard_common::domain::TaskId;

use super::{Backend, Backends, Replica};

/// The answer, with the replicas that were left out because they go.
pub fn configuration(backends: &Backends, subnet: Option<Subnet>) -> (Value, Vec<TaskId>) {
    let (mut routers, mut services, mut going) = (Map::new(), Map::new(), Vec::new());
    for (name, backend) in &backends.services {
        let id = id(name);
        let (own_routers, port, scheme) = match by_traefik(&id, backend) {
            Some(found) => found,
            None => match by_ours(&id, backend) {
                Some(found) => found,
                None => continue,
            },
        };
        let gone = backend.replicas.iter().filter(|replica| replica.draining);
        going.extend(gone.map(|replica| replica.task.clone()));
        let servers: Vec<Value> = backend
            .replicas
            .iter()
            .filter(|replica| replica.ready && !replica.draining)
            .filter_map(|replica| Some(server(replica, address(replica, subnet)?, port, &scheme)))
            .collect();
        // Without a server Traefik answers 503 by itself.
        services.insert(id, json!({"loadBalancer": {"servers": servers}}));
        routers.extend(own_routers);
    }
    let http = if routers.is_empty() { json!({}) } else { json!({"routers": routers, "services": services}) };
    (json!({"http": http}), going)
}

/// A service's name in Traefik.
pub fn id(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_', "-")
}

type Found = (Vec<(String, Value)>, u16, String);

fn by_ours(id: &str, backend: &Backend) -> Option<Found> {
    let route = backend.route.as_ref()?;
    let hosts: Vec<String> = route.hosts.iter().map(|host| format!("Host(`{host}`)")).collect();
    let path = format!("PathPrefix(`{}`)", route.path);
    let rule = match hosts.as_slice() {
        [] => path,
        hosts => format!("({}) && {path}", hosts.join(" || ")),
    };
    let router = json!({"rule": rule, "service": id});
    Some((vec![(id.to_owned(), router)], route.port, "http".into()))
}

fn by_traefik(id: &str, backend: &Backend) -> Option<Found> {
    let labels = &backend.traefik;
    if labels.get("enable").map(String::as_str) != Some("true") {
        return None;
    }
    let of = |kind: &str| -> BTreeMap<&str, Vec<(&str, &str)>> {
        let mut found: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
        for (key, value) in labels {
            if let Some((name, field)) = key.strip_prefix(kind).and_then(|rest| rest.split_once('.')) {
                found.entry(name).or_default().push((field, value));
            }
        }
        found
    };
    let server = |field: &str| {
        let wanted = format!("loadbalancer.server.{field}");
        of("http.services.").into_values().flatten().find(|(key, _)| *key == wanted).map(|(_, value)| value)
    };
    let port = server("port")
        .and_then(|port| port.parse().ok())
        .or(backend.route.as_ref().map(|route| route.port))?;
    let routers = of("http.routers.").into_iter().filter_map(|(name, fields)| {
        let list =
            |text: &str| -> Vec<String> { text.split(',').map(|word| word.trim().to_owned()).collect() };
        let mut router = Map::from_iter([("service".to_owned(), json!(id))]);
        for (field, value) in fields {
            match field {
                "rule" => drop(router.insert("rule".into(), json!(value))),
                "entrypoints" => drop(router.insert("entryPoints".into(), json!(list(value)))),
                "middlewares" => drop(router.insert("middlewares".into(), json!(list(value)))),
                "priority" => {
                    if let Ok(priority) = value.parse::<i64>() {
                        router.insert("priority".into(), json!(priority));
                    }
                }
                "tls" if value == "true" => {
                    router.entry("tls").or_insert_with(|| json!({}));
                }
                "tls.certresolver" => drop(router.insert("tls".into(), json!({"certResolver": value}))),
                // `service` names one of its own, which is this one; the rest Traefik knows and we do not.
                _ => {}
            }
        }
        router.contains_key("rule").then(|| (name.to_owned(), Value::Object(router)))
    });
    Some((routers.collect(), port, server("scheme").unwrap_or("http").to_owned()))
}

fn server(replica: &Replica, address: IpAddr, port: u16, scheme: &str) -> Value {
    let host = std::net::SocketAddr::new(address, port);
    json!({"url": format!("{scheme}://{host}"), "weight": replica.weight})
}

/// The address in the subnet, or the first.
fn address(replica: &Replica, subnet: Option<Subnet>) -> Option<IpAddr> {
    replica.addresses.iter().copied().find(|address| subnet.is_none_or(|subnet| subnet.holds(*address)))
}

/// `10.0.3.0/24`: of a replica on several networks, the addresses that Traefik reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    mask: u32,
}

impl Subnet {
    fn holds(self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if u32::from(address) & self.mask == self.base)
    }
}

impl std::str::FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (base, bits) = text.split_once('/')?;
            let (base, bits) = (base.parse::<std::net::Ipv4Addr>().ok()?, bits.parse::<u32>().ok()?);
            let mask = if bits == 0 { 0 } else { u32::MAX.checked_shl(32_u32.checked_sub(bits)?)? };
            Some(Self { base: u32::from(base) & mask, mask })
        };
        read().ok_or_else(|| format!("subnet={text}: one such as 10.0.3.0/24"))
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_common::{labels::ServicePolicy, time::Time};

    use super::*;

    fn replica(last: u8, draining: bool) -> Replica {
        Replica {
            task: format!("t{last}").parse().expect("an ID"),
            node: "w1".into(),
            node_address: None,
            addresses: vec![IpAddr::from([10, 0, 0, last]), IpAddr::from([10, 9, 0, last])],
            ready: true,
            draining,
            weight: 10 * last,
        }
    }

    fn backends(ours: &[(&str, &str)], traefik: &[(&str, &str)]) -> Backends {
        let web = Backend {
            route: ServicePolicy::from_labels(ours.iter().copied()).expect("sensible").route,
            traefik: traefik.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            replicas: vec![replica(1, false), replica(2, true), replica(3, false)],
        };
        Backends { taken: Time::ZERO, services: [("shop.web".to_owned(), web)].into() }
    }

    #[test]
    fn our_labels_make_a_router_and_who_goes_is_left_out() {
        let labels = [("swarmguard.lb.port", "8080"), ("swarmguard.lb.host", "a.example,b.example")];
        let (found, going) = configuration(&backends(&labels, &[]), "10.9.0.0/16".parse().ok());
        assert_eq!(
            found,
            json!({"http": {
                "routers": {"shop-web": {
                    "rule": "(Host(`a.example`) || Host(`b.example`)) && PathPrefix(`/`)", "service": "shop-web"
                }},
                "services": {"shop-web": {"loadBalancer": {"servers": [
                    {"url": "http://10.9.0.1:8080", "weight": 10}, {"url": "http://10.9.0.3:8080", "weight": 30}
                ]}}}
            }})
        );
        assert_eq!(going.iter().map(|task| task.as_str()).collect::<Vec<_>>(), ["t2"]);
    }

    #[test]
    fn traefiks_own_labels_are_taken_as_they_are() {
        let labels = [
            ("enable", "true"),
            ("http.routers.web.rule", "Host(`x`)"),
            ("http.routers.web.entrypoints", "web, websecure"),
            ("http.routers.web.tls.certresolver", "le"),
            ("http.services.any.loadbalancer.server.port", "9000"),
        ];
        let (found, _) = configuration(&backends(&[], &labels), None);
        let router = json!({"rule": "Host(`x`)", "entryPoints": ["web", "websecure"], "service": "shop-web",
            "tls": {"certResolver": "le"}});
        assert_eq!(found["http"]["routers"]["web"], router);
        assert_eq!(
            found["http"]["services"]["shop-web"]["loadBalancer"]["servers"][0]["url"],
            "http://10.0.0.1:9000"
        );
        for off in [vec![("enable", "false"), labels[1]], vec![labels[0], labels[1]], vec![]] {
            assert_eq!(configuration(&backends(&[], &off), None).0, json!({"http": {}}), "{off:?}");
        }
    }

    #[test]
    fn subnets_are_read_strictly() {
        for nonsense in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/-1", ""] {
            assert!(nonsense.parse::<Subnet>().is_err(), "{nonsense}");
        }
        assert!("0.0.0.0/0".parse::<Subnet>().expect("all").holds(IpAddr::from([9, 9, 9, 9])));
    }
}
