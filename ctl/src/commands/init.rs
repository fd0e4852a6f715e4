//! `init`: a swarm where there is none. `cleanup`: what this node no longer needs.

use http::Method;
use serde_json::{Value, json};

use crate::{
    cli::Kind,
    failure::{Exit, Failure, Outcome},
    out::bytes,
    session::Session,
};

/// Makes this engine the first manager of a new swarm, and says how others join.
pub async fn init(session: &Session, advertise: Option<&str>, network: Option<&str>) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let info = engine.get("/info").await?;
    match info["Swarm"]["LocalNodeState"].as_str() {
        Some("inactive") => {
            let mut body = json!({"ListenAddr": "0.0.0.0:2377"});
            if let Some(address) = advertise {
                body["AdvertiseAddr"] = address.into();
            }
            engine.call(Method::POST, "/swarm/init", Some(&body)).await.map_err(|failure| {
                failure.hint("several addresses: name the one that other nodes reach with --advertise-addr")
            })?;
            session.note("this node is the first manager of a new swarm");
        }
        Some("active") => session.note("this node is in a swarm already"),
        other => {
            return Err(Failure::failed(format!(
                "the engine's swarm state is {}",
                other.unwrap_or("unknown")
            ))
            .hint("docker info says more"));
        }
    }
    let swarm = engine.get("/swarm").await?;
    let info = engine.get("/info").await?;
    let address = info["Swarm"]["RemoteManagers"][0]["Addr"].as_str().unwrap_or("MANAGER:2377").to_owned();
    if let Some(name) = network {
        let there = engine.list("/networks", &json!({"name": [name], "scope": ["swarm"]})).await?;
        if !there.iter().any(|found| found["Name"] == *name) {
            let body = json!({"Name": name, "Driver": "overlay", "Attachable": true, "CheckDuplicate": true});
            engine.call(Method::POST, "/networks/create", Some(&body)).await?;
            session.note(&format!("overlay network {name} is made"));
        }
    }
    let token = |role: &str| swarm["JoinTokens"][role].as_str().unwrap_or_default().to_owned();
    let join = |role: &str| format!("docker swarm join --token {} {address}", token(role));
    let value = json!({"join_worker": join("Worker"), "join_manager": join("Manager")});
    session.answer("Swarm", value, &address, || {
        format!("on each worker:\n  {}\non each further manager (3 or 5 in all):\n  {}\nthen: swarmguard install\n", join("Worker"), join("Manager"))
    })?;
    Ok(Exit::Done)
}

/// Removes stopped containers, dangling images and unused networks of this node; volumes only where they are named.
pub async fn cleanup(
    session: &Session,
    keep: &[Kind],
    volumes: bool,
    yes: bool,
    dry_run: bool,
) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let used = engine.get("/system/df").await?;
    let stopped = count(&used["Containers"], |container| {
        container["State"] == "exited" || container["State"] == "created"
    });
    let dangling = count(&used["Images"], |image| {
        image["RepoTags"].as_array().is_none_or(Vec::is_empty) && image["Containers"] == 0
    });
    let unused = count(&used["Volumes"], |volume| volume["UsageData"]["RefCount"] == 0);
    let mut paths = Vec::new();
    let mut text = String::new();
    for (kind, path, what) in [
        (Kind::Containers, "/containers/prune", format!("{stopped} stopped containers")),
        (Kind::Images, "/images/prune", format!("{dangling} images without a name")),
        (Kind::Networks, "/networks/prune", "networks that nothing uses".to_owned()),
    ] {
        if !keep.contains(&kind) {
            text += &format!("  {what}\n");
            paths.push(path);
        }
    }
    if volumes {
        text += &format!("  {unused} volumes that nothing uses, with their data\n");
        paths.push("/volumes/prune");
    }
    session.note(&format!("on this node would go:\n{}", text.trim_end()));
    if dry_run || paths.is_empty() {
        return Ok(Exit::Done);
    }
    session.confirm("Remove them?", yes)?;
    let mut freed = 0;
    for path in paths {
        let answer = engine.call(Method::POST, path, None).await?;
        freed += answer["SpaceReclaimed"].as_u64().unwrap_or(0);
    }
    session
        .answer("Result", json!({"freed_bytes": freed}), "done", || format!("{} freed\n", bytes(freed)))?;
    Ok(Exit::Done)
}

fn count(list: &Value, of: impl Fn(&Value) -> bool) -> usize {
    list.as_array().map_or(0, |list| list.iter().filter(|one| of(one)).count())
}
