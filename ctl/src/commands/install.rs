//! `install`: preflight, secrets, roots, services, waited for and checked. What fails takes away what it made.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::PathBuf, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::{
    check,
    rollout::{self, Ended, Watched},
};
use crate::{
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    session::Session,
    stack::{self, Ids, NAMESPACE},
};

/// Namespace of the stack, so that `docker stack ps swarmguard` works.
pub const STACK: &str = "swarmguard";
/// Lets operators command over the API.
pub const OPERATOR_TOKEN: &str = "swarmguard-operator-token";
/// Lets balancers in.
pub const BALANCER_TOKEN: &str = "swarmguard-balancer-token";
/// What balancers trust.
pub const ROOTS: &str = "swarmguard-roots";
/// Until the check must be green.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Decide and explain only.
    pub observe: bool,
    /// Network of the balanced services.
    pub balancer: Option<String>,
    /// Print the stack file only.
    pub print: bool,
    /// Images, to be put on every node.
    pub load: Option<PathBuf>,
    /// Who logs in to the other nodes for that.
    pub ssh_user: Option<String>,
    /// Image names.
    pub images: BTreeMap<String, String>,
    /// Capabilities that the nodes do not have.
    pub without: Vec<String>,
    /// Longest wait for each part.
    pub timeout: Duration,
    /// Also where the preflight fails.
    pub force: bool,
    /// Say what would be done.
    pub dry_run: bool,
}

/// Installs.
pub async fn install(session: &Session, wanted: &Wanted) -> Outcome<Exit> {
    if wanted.print {
        let files = files(wanted.balancer.is_some(), true);
        let whole = whole(&files, session, wanted)?;
        let text = serde_norway::to_string(&whole).map_err(|error| Failure::failed(error.to_string()))?;
        session.print(&format!("# docker stack deploy -c - {STACK}; the secrets and configs must exist (swarmguard install --help)\n{text}"))?;
        return Ok(Exit::Done);
    }
    let engine = session.engine().await?;
    let lines = check::before(engine, true).await?;
    let fit = check::good(&lines, false);
    if !fit && !wanted.force {
        check::show(session, &lines, true)?;
        session.note("nothing was changed; --force installs all the same");
        return Ok(Exit::BelowMark);
    }
    let there = engine.list("/services", &json!({"label": ["swarmguard.role"]})).await?;
    if let Some(service) = there.first() {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "SwarmGuard is installed already ({})",
                service["Spec"]["Name"].as_str().unwrap_or_default()
            ),
        )
        .code("installed")
        .hint("swarmguard upgrade, or swarmguard uninstall"));
    }
    let limits = !lines.iter().any(|line| line.code == "cpu_limits" && line.state != check::State::Ok);
    if let Some(tar) = &wanted.load {
        if wanted.dry_run {
            session.print(&format!("would: load {} on every node\n", tar.display()))?;
        } else {
            load(session, engine, tar, wanted.ssh_user.as_deref()).await?;
        }
    }
    let whole = whole(&files(wanted.balancer.is_some(), limits), session, wanted)?;
    if wanted.dry_run {
        let services: Vec<&String> =
            whole["services"].as_object().map(|all| all.keys().collect()).unwrap_or_default();
        session.print(&format!("would: create {services:?} with their secrets as stack {STACK}\n"))?;
        return Ok(Exit::Done);
    }
    let mut made = Made::default();
    match create(session, engine, wanted, &whole, &mut made).await {
        Ok(()) => {}
        Err(failure) => {
            session.note("taking away what was made");
            made.remove(engine).await;
            return Err(failure);
        }
    }
    session.note("waiting for agents and coordinators");
    let wanted = check::Wanted { wait: Some(PATIENCE), ..check::Wanted::default() };
    check::check(session, &wanted).await
}

/// The stack as it is deployed: its files merged, filled in, and without what the nodes do not have.
fn whole(files: &[&'static str], session: &Session, wanted: &Wanted) -> Outcome<Value> {
    let mut whole = stack::merged(files, &variables(session, wanted)).map_err(no_image)?;
    if let Some(capabilities) = whole["services"]["agent"]["cap_add"].as_array_mut() {
        capabilities.retain(|one| !wanted.without.iter().any(|without| one == without.as_str()));
    }
    Ok(whole)
}

fn no_image(why: String) -> Failure {
    Failure::usage(why).hint("name the images: --agent-image, --coordinator-image (and --balancer-image)")
}

/// The stack files that are wanted.
pub fn files(balancer: bool, limits: bool) -> Vec<&'static str> {
    let mut files = vec![stack::STACK, stack::OPERATOR_TOKEN, stack::BALANCER_TOKEN];
    if balancer {
        files.push(stack::BALANCER);
    }
    if !limits {
        files.push(stack::WITHOUT_CPU_LIMITS);
    }
    files
}

/// What the files are filled in from: the environment, as docker does it, and what was said.
fn variables(session: &Session, wanted: &Wanted) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = ["agent", "coordinator", "balancer"]
        .iter()
        .map(|part| {
            let name = format!("SWARMGUARD_{}_IMAGE", part.to_uppercase());
            (name, format!("swarmguard/{part}:{}", env!("CARGO_PKG_VERSION")))
        })
        .collect();
    variables.extend(session.env.clone());
    variables.extend(wanted.images.clone());
    if wanted.observe {
        variables.insert("SWARMGUARD_OBSERVE".into(), "true".into());
    }
    if let Some(network) = &wanted.balancer {
        variables.insert("BALANCED_NETWORK".into(), network.clone());
    }
    variables
}

/// What was made, in that order.
#[derive(Default)]
struct Made(Vec<String>);

impl Made {
    async fn remove(&self, engine: &Engine) {
        for path in self.0.iter().rev() {
            // Secrets are in use until the tasks are gone.
            for _ in 0..20 {
                let removed = engine.raw(Method::DELETE, path, None).await;
                if removed
                    .is_ok_and(|answer| answer.status.is_success() || answer.status == StatusCode::NOT_FOUND)
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn create(
    session: &Session,
    engine: &Engine,
    wanted: &Wanted,
    whole: &Value,
    made: &mut Made,
) -> Outcome {
    let mut ids = Ids::default();
    for name in [OPERATOR_TOKEN, BALANCER_TOKEN] {
        ids.secrets.insert(name.into(), object(engine, "secrets", name, &random()?, made).await?);
    }
    if let Some(network) = &wanted.balancer {
        let info = engine.get("/info").await?;
        let root = info["Swarm"]["Cluster"]["TLSInfo"]["TrustRoot"].as_str().unwrap_or_default();
        if root.is_empty() {
            return Err(Failure::failed("the engine does not tell the swarm's root certificate"));
        }
        ids.configs.insert(ROOTS.into(), object(engine, "configs", ROOTS, root.as_bytes(), made).await?);
        ids.networks.insert(network.clone(), balanced_network(engine, network).await?);
    }
    ids.networks.insert("host".into(), network(engine, "host").await?);
    let specs = stack::specs(whole, STACK, &ids).map_err(Failure::failed)?;
    let coordinators = ["swarmguard_coordinator", "swarmguard_agent", "swarmguard_balancer"];
    let mut watched = Vec::new();
    for name in coordinators {
        let Some(spec) = specs.iter().find(|spec| spec["Name"] == name) else { continue };
        let mut spec = spec.clone();
        if name == "swarmguard_balancer"
            && let Some(env) = spec["TaskTemplate"]["ContainerSpec"]["Env"].as_array_mut()
        {
            // Managers' addresses are known only now.
            let managers = manager_addresses(engine).await?;
            env.retain(|one| one.as_str() != Some("SWARMGUARD_COORDINATORS="));
            env.push(format!("SWARMGUARD_COORDINATORS={}", managers.join(",")).into());
        }
        let answer = engine.call(Method::POST, "/services/create", Some(&spec)).await?;
        let id = answer["ID"].as_str().or_else(|| answer["Id"].as_str()).unwrap_or_default().to_owned();
        made.0.push(format!("/services/{id}"));
        watched.push(Watched::of(&engine.get(&format!("/services/{id}")).await?));
    }
    for watched in &watched {
        match rollout::until_over(session, engine, watched, wanted.timeout).await? {
            Ended::Done => {}
            Ended::Failed(why) | Ended::RolledBack(why) => {
                return Err(Failure::failed(format!("{} does not run: {why}", watched.name)));
            }
            Ended::TooLate => {
                return Err(Failure::new(
                    Exit::TimedOut,
                    format!("{} does not run after {}s", watched.name, wanted.timeout.as_secs()),
                )
                .hint("are the images on every node? --load puts them there"));
            }
        }
    }
    Ok(())
}

/// Where balancers and agents find the coordinators.
async fn manager_addresses(engine: &Engine) -> Outcome<Vec<String>> {
    let nodes = engine.list("/nodes", &json!({"role": ["manager"]})).await?;
    let address = |node: &Value| {
        let own = node["Status"]["Addr"].as_str().filter(|addr| *addr != "0.0.0.0" && !addr.is_empty());
        let known = node["ManagerStatus"]["Addr"]
            .as_str()
            .and_then(|addr| addr.rsplit_once(':'))
            .map(|(host, _)| host);
        own.or(known).map(|host| format!("{host}:7443"))
    };
    Ok(nodes.iter().filter_map(address).collect())
}

/// A secret or config of ours; one that is there already is used as it is.
async fn object(engine: &Engine, kind: &str, name: &str, data: &[u8], made: &mut Made) -> Outcome<String> {
    let there = engine.list(&format!("/{kind}"), &json!({"name": [name]})).await?;
    if let Some(found) = there.iter().find(|found| found["Spec"]["Name"] == name) {
        return Ok(found["ID"].as_str().unwrap_or_default().into());
    }
    let id = make(engine, kind, name, data).await?;
    made.0.push(format!("/{kind}/{id}"));
    Ok(id)
}

async fn make(engine: &Engine, kind: &str, name: &str, data: &[u8]) -> Outcome<String> {
    let body = json!({"Name": name, "Labels": {NAMESPACE: STACK}, "Data": STANDARD.encode(data)});
    let answer = engine.call(Method::POST, &format!("/{kind}/create"), Some(&body)).await?;
    Ok(answer["ID"].as_str().or_else(|| answer["Id"].as_str()).unwrap_or_default().to_owned())
}

/// A new secret of ours; its ID.
///
/// # Errors
/// When the engine does not make it.
pub async fn secret(engine: &Engine, name: &str, data: &[u8]) -> Outcome<String> {
    make(engine, "secrets", name, data).await
}

async fn network(engine: &Engine, name: &str) -> Outcome<String> {
    let found = engine.get(&format!("/networks/{name}?scope=swarm")).await;
    match found {
        Ok(found) => Ok(found["Id"].as_str().unwrap_or_default().into()),
        Err(failure) => Err(failure.context(&format!("network {name}"))),
    }
}

async fn balanced_network(engine: &Engine, name: &str) -> Outcome<String> {
    network(engine, name).await.map_err(|_| {
        Failure::usage(format!("--balancer: there is no overlay network {name:?}"))
            .hint("docker network ls --filter scope=swarm lists them; it is the one that the balanced services are on")
    })
}

/// 256 random bits as text.
///
/// # Errors
/// When the system gives none.
pub fn random() -> Outcome<Vec<u8>> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::failed(format!("no random bytes: {error}")))?;
    Ok(format!("{:x}", Sha256::digest(bytes)).into_bytes())
}

/// Puts images on every node: here through the engine, elsewhere over ssh.
async fn load(session: &Session, engine: &Engine, tar: &PathBuf, user: Option<&str>) -> Outcome {
    let bytes = tokio::fs::read(tar)
        .await
        .map_err(|error| Failure::usage(format!("--load {}: {error}", tar.display())))?;
    let nodes = engine.list("/nodes", &json!({})).await?;
    let info = engine.get("/info").await?;
    for node in nodes.iter().filter(|node| node["Status"]["State"] == "ready") {
        let host = node["Description"]["Hostname"].as_str().unwrap_or_default();
        if node["ID"] == info["Swarm"]["NodeID"] {
            engine.load_images(bytes.clone().into()).await?;
        } else {
            let address = node["Status"]["Addr"].as_str().unwrap_or(host);
            let user = user.ok_or_else(|| {
                Failure::usage(format!("--load must reach {host} too: --ssh-user names who logs in there"))
            })?;
            let input = File::open(tar)
                .map_err(|error| Failure::usage(format!("--load {}: {error}", tar.display())))?;
            let mut ssh = Command::new("ssh");
            ssh.args([
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=15",
                "-l",
                user,
                "--",
                address,
                "docker",
                "load",
            ]);
            let ended = ssh.stdin(input).stdout(Stdio::null()).status().await;
            if !ended.is_ok_and(|ended| ended.success()) {
                return Err(Failure::failed(format!("images could not be loaded on {host} ({address})"))
                    .hint(format!("ssh {user}@{address} docker load must work")));
            }
        }
        session.note(&format!("{host} has the images"));
    }
    Ok(())
}
