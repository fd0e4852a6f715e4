//! What Traefik polls (`providers.http`).

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, Uri},
};
use serde::Deserialize;
use serde_json::Value;
use std::{net::IpAddr, time::Duration};
use swarmguard_common::domain::TaskId;
use swarmguard_runtime::clock;

use super::{Api, Via, problem::Problem, read::query};
use crate::proxies::{Kind, traefik};

/// What is older is not answered from: Traefik then keeps what it has.
const OLDEST: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    subnet: Option<String>,
}

pub(super) async fn configuration(
    State(api): State<Api>,
    via: Option<Extension<Via>>,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    let Wanted { subnet } = query(&uri)?;
    let subnet = subnet
        .map(|text| text.parse::<traefik::Subnet>())
        .transpose()
        .map_err(|why| Problem::bad_request("bad_query", why))?;
    let (backends, now) = (api.0.glance.backends(), clock::now());
    if now.since(backends.taken) > OLDEST {
        let detail = "Swarm could not be read lately: keep what you have";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail));
    }
    let (answer, going) = traefik::configuration(&backends, subnet);
    if let Some(askers) = api.0.glance.askers() {
        let from = via.map_or(IpAddr::from([0, 0, 0, 0]), |Extension(via)| via.peer.ip());
        let service_of = |task: &TaskId| backends.service_of(task);
        let named: Vec<String> = answer["http"]["services"]
            .as_object()
            .map(|all| all.keys().cloned().collect())
            .unwrap_or_default();
        // Names there have other characters for those that Traefik does not take.
        let asked = backends.services.keys().filter(|name| named.iter().any(|one| traefik::id(name) == *one));
        askers.asked((from, Kind::Traefik), now, asked.cloned(), &going, service_of);
    }
    Ok(Json(answer))
}
