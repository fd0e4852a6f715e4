//! The operator's hand on a real Swarm: the command line `swarmguard` from the first look at a swarm to the last thing
//! removed, with a service that is deployed, moved, broken, updated and rolled back in between.
//!
//! It begins by removing the SwarmGuard that the tier has deployed and ends with none, so it is played last.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use swarmguard_runtime::clock::now;

use super::MOVES;
use crate::e2e::stage::{Front, Stage, until};
use crate::http::Endpoint;
use crate::tasks::Watcher;

/// Longest that one command may take, on machines that have other things to do.
const COMMAND: Duration = Duration::from_secs(240);
const STACK: &str = "ops";
const SERVICE: &str = "ops_web";
/// The label of everything that `install` makes.
const NAMESPACE: &str = "com.docker.stack.namespace=swarmguard";

/// How commands end: see docs/cli.md.
const DONE: i32 = 0;
const REFUSED: i32 = 4;
const UNDONE: i32 = 5;

/// What a command answered.
struct Said {
    line: String,
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn ends(self, code: i32) -> Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        let Self { line, code: ended, out, err } = self;
        bail!("{line} ended with {ended} and not with {code}:\n{out}{err}")
    }

    fn says(self, words: &str) -> Result<Self> {
        if self.out.contains(words) || self.err.contains(words) {
            return Ok(self);
        }
        bail!("{} does not say {words:?}:\n{}{}", self.line, self.out, self.err)
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{} prints no JSON: {}", self.line, self.out))
    }
}

/// The command line on a manager.
struct Hand<'a> {
    stage: &'a Stage,
    program: PathBuf,
    env: BTreeMap<String, String>,
    files: Files,
}

/// A directory for what commands read and write, gone with us.
struct Files(PathBuf);

impl Files {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("swarmguard-operator-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl<'a> Hand<'a> {
    fn new(stage: &'a Stage) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell this program's path")?;
        let program = program.with_file_name("swarmguard");
        ensure!(program.exists(), "{}: build it first (cargo build -p swarmguard-ctl)", program.display());
        let manager = stage.cluster.manager();
        let Endpoint::Unix(socket) = manager.engine.endpoint() else {
            bail!("the manager's engine has no socket on this machine")
        };
        let mut env = BTreeMap::from([
            ("DOCKER_HOST".to_owned(), format!("unix://{}", socket.display())),
            ("DOCKER_CONFIG".to_owned(), "/nonexistent".to_owned()),
            ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()),
            ("USER".to_owned(), "anna".to_owned()),
            // On slow processors, or a part of one, ten readings a second cost several times as much as elsewhere.
            ("SWARMGUARD_BUDGET".to_owned(), "5".to_owned()),
            ("BALANCER_CPUS".to_owned(), "0".to_owned()),
        ]);
        if let Some(millis) = manager.cpu_millis {
            env.insert("SWARMGUARD_NODE_CGROUP".into(), "/".into());
            env.insert("SWARMGUARD_NODE_CPUS".into(), (f64::from(millis) / 1_000.0).to_string());
        }
        Ok(Self { stage, program, env, files: Files::new()? })
    }

    async fn run(&self, args: &[&str]) -> Result<Said> {
        let line = format!("swarmguard {}", args.join(" "));
        let begun = now();
        let mut command = tokio::process::Command::new(&self.program);
        command.env_clear().envs(&self.env).args(args).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND, command.output()).await;
        let output = output.with_context(|| format!("{line} does not end"))?;
        let output = output.with_context(|| format!("{line} does not start"))?;
        let code = output.status.code().with_context(|| format!("{line} was killed"))?;
        println!("  operator: {line} ({:.1} s, code {code})", (now() - begun).as_secs_f64());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { line, code, out: text(&output.stdout), err: text(&output.stderr) })
    }

    /// A stack file of one web service.
    fn compose(&self, name: &str, image: &str) -> Result<String> {
        let network = match &self.stage.front {
            Front::Balancers { network, .. } => network.as_str(),
            Front::Mesh => "ingress",
        };
        let (networks, at, mode) = if network == "ingress" {
            (String::new(), "", "")
        } else {
            let external = format!("networks:\n  web:\n    external: true\n    name: {network}\n");
            (external, "    networks: [web]\n", "      endpoint_mode: dnsrr\n")
        };
        let text = format!(
            "version: \"3.8\"\nservices:\n  web:\n    image: {image}\n{at}\
             \x20   healthcheck:\n      test: [\"CMD\", \"/web-stress\", \"healthcheck\"]\n      interval: 1s\n      timeout: 20s\n\
             \x20     retries: 5\n      start_period: 60s\n    stop_grace_period: 10s\n\
             \x20   deploy:\n{mode}      replicas: 2\n      labels: {{swarmguard.network.mbps: \"200\"}}\n\
             \x20     restart_policy: {{condition: any, delay: 1s}}\n\
             \x20     update_config: {{parallelism: 1, order: start-first, failure_action: pause, monitor: 5s}}\n{networks}"
        );
        let file = self.files.0.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file.display().to_string())
    }

    async fn image(&self) -> Result<String> {
        let service = self.stage.cluster.swarm().service_by_name(SERVICE).await?;
        let image = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default();
        Ok(image.to_owned())
    }
}

/// The whole life of an installation.
pub async fn whole_life(stage: &Stage) -> Result<()> {
    let hand = Hand::new(stage)?;
    hand.run(&["uninstall", "--yes"]).await?.ends(DONE)?.says("nothing of SwarmGuard is left")?;
    hand.run(&["status"]).await?.ends(3)?.says("swarmguard install")?;
    installed(&hand).await?;
    let watcher = deployed(&hand).await?;
    read(&hand).await?;
    drained(&hand, &watcher).await?;
    broken_and_taken_back(&hand).await?;
    rolled_back_past_a_move(&hand, &watcher).await?;
    upgraded(&hand).await?;
    given_away(&hand).await?;
    gone_in_the_middle(&hand, &watcher).await?;
    let id =
        stage.cluster.swarm().service_by_name(SERVICE).await?["ID"].as_str().unwrap_or_default().to_owned();
    stage.cluster.swarm().delete(&format!("/services/{id}")).await
}

async fn installed(hand: &Hand<'_>) -> Result<()> {
    hand.run(&["init"]).await?.ends(DONE)?.says("docker swarm join --token")?;
    hand.run(&["check", "--pre"]).await?.ends(DONE)?;
    let mut words = vec!["install".to_owned()];
    for part in ["agent", "coordinator", "balancer"] {
        words.push(format!("--{part}-image"));
        words.push(hand.stage.image(part)?.id.clone());
    }
    if let Front::Balancers { network, .. } = &hand.stage.front {
        words.extend(["--balancer".to_owned(), network.clone()]);
    }
    if !has_capability(24)? {
        words.extend(["--without-capability".to_owned(), "SYS_RESOURCE".to_owned()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    hand.run(&words).await?.ends(DONE)?;
    hand.run(&words).await?.ends(REFUSED)?.says("installed already")?;
    hand.run(&["check", "--wait=2m"]).await?.ends(DONE)?;
    Ok(())
}

/// Whether this process could give a capability to what it starts.
fn has_capability(bit: u32) -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
    Ok(u64::from_str_radix(line.trim(), 16).context("CapBnd")? >> bit & 1 == 1)
}

async fn deployed(hand: &Hand<'_>) -> Result<Watcher> {
    let file = hand.compose("good.yml", &hand.stage.image("web-stress")?.id)?;
    let deploy = ["deploy", "-c", &file, STACK, "--resolve-image", "never"];
    hand.run(&deploy).await?.ends(DONE)?;
    hand.run(&["enable", SERVICE]).await?.ends(DONE)?.says("swarmguard.enable=true")?;
    let service = hand.stage.cluster.swarm().service_by_name(SERVICE).await?;
    let watcher =
        Watcher::start(hand.stage.cluster.swarm().clone(), service["ID"].as_str().context("an ID")?);
    until("two replicas serve", MOVES, || async { Ok(watcher.serving().len() == 2) }).await?;
    Ok(watcher)
}

/// What an operator looks at, once the coordinator knows the service.
async fn read(hand: &Hand<'_>) -> Result<()> {
    let known = || async { Ok(hand.run(&["services", "-q"]).await?.out.lines().any(|line| line == SERVICE)) };
    until("the service is listed", Duration::from_secs(60), known).await?;
    let status = hand.run(&["status", "-o", "json"]).await?.ends(DONE)?.json()?;
    ensure!(status["apiVersion"] == "swarmguard/v1", "{status}");
    hand.run(&["health", "--min", "50"]).await?.ends(DONE)?;
    hand.run(&["explain", SERVICE]).await?.ends(DONE)?.says(SERVICE)?;
    hand.run(&["ps", SERVICE]).await?.ends(DONE)?;
    hand.run(&["top"]).await?.ends(DONE)?.says(SERVICE)?;
    Ok(())
}

/// A node is left, successors first, and takes tasks again.
async fn drained(hand: &Hand<'_>, watcher: &Watcher) -> Result<()> {
    let cluster = &hand.stage.cluster;
    let serving = watcher.serving();
    let node =
        serving.values().map(|task| &task.node).find(|id| cluster.node(id).is_some_and(|node| !node.manager));
    let node = node.context("no replica is off the manager")?.clone();
    let name = cluster.name(&node).to_owned();
    hand.run(&["drain", &name]).await?.ends(DONE)?;
    ensure!(cluster.availability(&node).await? == "drain", "{name} is not drained");
    let here = watcher.serving().values().filter(|task| task.node == node).count();
    ensure!(here == 0, "{here} replicas serve on {name}, which is drained");
    hand.run(&["undrain", &name]).await?.ends(DONE)?;
    ensure!(cluster.availability(&node).await? == "active", "{name} takes no tasks");
    Ok(())
}

/// An image that no node has: the stack gets its spec from before.
async fn broken_and_taken_back(hand: &Hand<'_>) -> Result<()> {
    let good = hand.image().await?;
    let file = hand.compose("bad.yml", "nowhere.invalid/web:1")?;
    let deploy = ["deploy", "-c", &file, STACK, "--resolve-image", "never"];
    hand.run(&deploy).await?.ends(UNDONE)?.says("has its spec from before")?;
    ensure!(hand.image().await? == good, "{SERVICE} has {} and not {good}", hand.image().await?);
    // `docker stack deploy` has taken away the label that no file names.
    hand.run(&["enable", SERVICE]).await?.ends(DONE)?;
    hand.run(&["update", SERVICE, "--image", "nowhere.invalid/web:2"]).await?.ends(UNDONE)?;
    ensure!(hand.image().await? == good, "{SERVICE} has {} and not {good}", hand.image().await?);
    Ok(())
}

/// Swarm keeps one earlier spec, and a move of ours leaves the present one there: a rollback is to bring the operator's.
async fn rolled_back_past_a_move(hand: &Hand<'_>, watcher: &Watcher) -> Result<()> {
    let (good, next) = (hand.image().await?, "swarmguard/web-stress:next");
    tag(hand.stage, &good, next).await?;
    hand.run(&["update", SERVICE, "--image", next]).await?.ends(DONE)?;
    ensure!(hand.image().await?.starts_with(next), "{SERVICE} has {}", hand.image().await?);
    until("two replicas serve", MOVES, || async { Ok(watcher.serving().len() == 2) }).await?;
    let from = watcher.serving().values().next().map(|task| task.node.clone()).context("no replica")?;
    hand.run(&["migrate", SERVICE, "--from", hand.stage.cluster.name(&from)]).await?.ends(DONE)?;
    hand.run(&["rollback", SERVICE, "--yes"]).await?.ends(DONE)?;
    ensure!(hand.image().await? == good, "{SERVICE} has {} and not {good}", hand.image().await?);
    Ok(())
}

/// A second name of an image, on every node.
async fn tag(stage: &Stage, image: &str, name: &str) -> Result<()> {
    let (repo, tag) = name.rsplit_once(':').context("a name with a tag")?;
    for node in &stage.cluster.nodes {
        let there = node.engine.get(&format!("/images/{image}/json")).await.is_ok();
        if there {
            node.engine.post(&format!("/images/{image}/tag?repo={repo}&tag={tag}"), &Value::Null).await?;
        }
    }
    Ok(())
}

async fn upgraded(hand: &Hand<'_>) -> Result<()> {
    for part in ["agent", "coordinator"] {
        tag(hand.stage, &hand.stage.image(part)?.id, &format!("swarmguard/{part}:next")).await?;
    }
    let bad = ["upgrade", "--agent-image", "nowhere.invalid/agent:1", "--timeout", "60s", "--yes"];
    hand.run(&bad).await?.ends(UNDONE)?.says("everything is as before")?;
    let good = [
        "upgrade",
        "--agent-image",
        "swarmguard/agent:next",
        "--coordinator-image",
        "swarmguard/coordinator:next",
    ];
    hand.run(&[&good[..], &["--yes"]].concat()).await?.ends(DONE)?;
    let service = hand.stage.cluster.swarm().service_by_name("swarmguard_agent").await?;
    let image = &service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"];
    ensure!(image == "swarmguard/agent:next", "agents have {image}");
    Ok(())
}

/// What is given away holds no secret; what is thrown away is not in use.
async fn given_away(hand: &Hand<'_>) -> Result<()> {
    let rotated = hand.run(&["token", "rotate", "operator", "--yes"]).await?.ends(DONE)?;
    let token = rotated.out.trim();
    ensure!(token.len() == 64, "the new token is {token:?}");
    let file = hand.files.0.join("bundle.tar").display().to_string();
    hand.run(&["bundle", "--out", &file]).await?.ends(DONE)?;
    let bundle = std::fs::read(&file).context("the bundle")?;
    ensure!(bundle.len() > 10_000, "the bundle has {} bytes", bundle.len());
    ensure!(!bundle.windows(token.len()).any(|part| part == token.as_bytes()), "the bundle holds the token");
    hand.run(&["cleanup", "--dry-run"]).await?.ends(DONE)?.says("stopped containers")?;
    hand.run(&["cleanup", "--keep", "images", "--yes"]).await?.ends(DONE)?.says("freed")?;
    Ok(())
}

/// Uninstalled while a replica moves: the service is as it was, and nothing of ours is left anywhere.
async fn gone_in_the_middle(hand: &Hand<'_>, watcher: &Watcher) -> Result<()> {
    let swarm = hand.stage.cluster.swarm();
    until("two replicas serve", MOVES, || async { Ok(watcher.serving().len() == 2) }).await?;
    let before = swarm.service_by_name(SERVICE).await?["Spec"].clone();
    let from = watcher.serving().values().next().map(|task| task.node.clone()).context("no replica")?;
    hand.run(&["migrate", SERVICE, "--from", hand.stage.cluster.name(&from), "--no-wait"])
        .await?
        .ends(DONE)?;
    hand.run(&["uninstall", "--yes"]).await?.ends(DONE)?.says("nothing of SwarmGuard is left")?;
    let mut left = Vec::new();
    for (path, what) in [("/services", "service"), ("/tasks", "task"), ("/networks", "network")] {
        let filters = filter(&json!({"label": [NAMESPACE]}));
        let found = swarm.get(&format!("{path}?filters={filters}")).await?;
        let running = |one: &&Value| what != "task" || one["Status"]["State"] == "running";
        let found = found.as_array().into_iter().flatten().filter(running);
        left.extend(
            found.map(|one| {
                format!("{what} {}", one["ID"].as_str().or(one["Id"].as_str()).unwrap_or_default())
            }),
        );
    }
    for kind in ["configs", "secrets"] {
        let found =
            swarm.get(&format!("/{kind}?filters={}", filter(&json!({"name": ["swarmguard-"]})))).await?;
        let names = found.as_array().into_iter().flatten().filter_map(|one| one["Spec"]["Name"].as_str());
        left.extend(names.map(|name| format!("{kind} {name}")));
    }
    for node in &hand.stage.cluster.nodes {
        let availability = hand.stage.cluster.availability(&node.id).await?;
        if availability != "active" {
            left.push(format!("{} is {availability}", node.name));
        }
        let volumes = node.engine.get("/volumes").await?;
        let ours = volumes["Volumes"].as_array().into_iter().flatten();
        left.extend(
            ours.filter_map(|volume| volume["Name"].as_str())
                .filter(|name| name.starts_with("swarmguard"))
                .map(|name| format!("volume {name} on {}", node.name)),
        );
    }
    let after = swarm.service_by_name(SERVICE).await?["Spec"].clone();
    if after != before {
        left.push(format!("{SERVICE} was {before} and is {after}"));
    }
    ensure!(left.is_empty(), "left behind: {}", left.join("; "));
    until("two replicas serve", MOVES, || async { Ok(watcher.serving().len() == 2) }).await?;
    hand.run(&["uninstall", "--yes"]).await?.ends(DONE)?.says("nothing of SwarmGuard is here")?;
    Ok(())
}

fn filter(filters: &Value) -> String {
    filters.to_string().replace('"', "%22").replace('{', "%7B").replace('}', "%7D")
}
