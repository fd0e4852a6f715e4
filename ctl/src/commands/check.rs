//! `check`: whether the swarm is fit for SwarmGuard (`--pre`), and whether SwarmGuard does what it should. Each line that
//! is not well says what to do.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};
use swarmguard_common::api::{Explanation, Overview};
use swarmguard_runtime::clock;

use super::{known_service, status};
use crate::{
    engine::{Engine, http::escape},
    failure::{Exit, Outcome},
    out::{Tone, clean},
    session::Session,
};

/// Oldest API that is supported: Docker 20.10.
const OLDEST_API: (u32, u32) = (1, 41);
/// Between two rounds of `--wait`.
const ROUND: Duration = Duration::from_secs(2);
/// Clocks that differ by more than this make certificates invalid sooner or later.
const MAX_SKEW_S: u64 = 60;
/// Ports of the coordinators.
const PORTS: [(u64, &str); 2] = [(7_443, "udp"), (7_480, "tcp")];

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, with less.
    Warning,
    /// It does not.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Line {
    /// A stable word.
    pub code: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub text: String,
    /// What to do.
    pub hint: String,
}

/// What is to be checked.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only what must hold before SwarmGuard is installed.
    pub pre: bool,
    /// One service, too.
    pub service: Option<String>,
    /// Only what is not well.
    pub short: bool,
    /// Warnings count as failures.
    pub strict: bool,
    /// Try again for so long.
    pub wait: Option<Duration>,
}

/// Checks and prints.
pub async fn check(session: &Session, wanted: &Wanted) -> Outcome<Exit> {
    let begun = clock::now();
    let lines = loop {
        let lines = all(session, wanted).await?;
        let again = wanted.wait.is_some_and(|longest| clock::now() - begun < longest);
        if good(&lines, wanted.strict) || !again {
            break lines;
        }
        tokio::time::sleep(ROUND).await;
    };
    show(session, &lines, wanted.short)?;
    Ok(if good(&lines, wanted.strict) { Exit::Done } else { Exit::BelowMark })
}

/// Whether nothing stands against it.
pub fn good(lines: &[Line], strict: bool) -> bool {
    lines.iter().all(|line| line.state == State::Ok || (!strict && line.state == State::Warning))
}

/// Prints the lines.
pub fn show(session: &Session, lines: &[Line], short: bool) -> Outcome {
    let word = |state| match state {
        State::Ok => ("ok", Tone::Good),
        State::Warning => ("warning", Tone::Warn),
        State::Failed => ("failed", Tone::Bad),
    };
    let values: Vec<Value> = lines
        .iter()
        .map(|line| json!({"code": line.code, "state": word(line.state).0, "text": line.text, "hint": line.hint}))
        .collect();
    let ok = good(lines, false);
    session.answer("Check", json!({"ok": ok, "lines": values}), if ok { "ok" } else { "failed" }, || {
        let mut text = String::new();
        for line in lines.iter().filter(|line| !short || line.state != State::Ok) {
            let (word, tone) = word(line.state);
            let _ =
                writeln!(text, "{}  {}", session.style.paint(tone, &format!("{word:<7}")), clean(&line.text));
            if line.state != State::Ok && !line.hint.is_empty() {
                let _ = writeln!(text, "         do: {}", clean(&line.hint));
            }
        }
        text
    })
}

async fn all(session: &Session, wanted: &Wanted) -> Outcome<Vec<Line>> {
    let mut lines = Vec::new();
    if session.global.coordinator.is_empty() {
        lines.extend(before(session.engine().await?, wanted.pre).await?);
    }
    if wanted.pre {
        return Ok(lines);
    }
    let overview = match session.overview().await {
        Ok(overview) => overview,
        Err(failure) => {
            lines.push(Line {
                code: "coordinator",
                state: State::Failed,
                text: failure.what,
                hint: failure.hint.unwrap_or_default(),
            });
            return Ok(lines);
        }
    };
    lines.extend(after(&overview));
    if let Some(service) = &wanted.service {
        let name = known_service(&overview, service)?;
        let path = format!("/api/v1/explain?service={}", escape(&name));
        lines.extend(of_service(&session.coordinator().await?.get(&path).await?));
    }
    Ok(lines)
}

struct Lines(Vec<Line>);

impl Lines {
    fn add(
        &mut self,
        code: &'static str,
        wrong: Option<State>,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Line { code, state: wrong.unwrap_or(State::Ok), text: text.into(), hint: hint.into() });
    }
}

fn failed(wrong: bool) -> Option<State> {
    wrong.then_some(State::Failed)
}

fn warning(wrong: bool) -> Option<State> {
    wrong.then_some(State::Warning)
}

/// What must hold before SwarmGuard is installed.
///
/// # Errors
/// When the engine does not answer.
pub async fn before(engine: &Engine, pre: bool) -> Outcome<Vec<Line>> {
    let mut lines = Lines(Vec::new());
    let version: Vec<u32> = engine.version.split('.').filter_map(|part| part.parse().ok()).collect();
    let old = (version.first().copied().unwrap_or(0), version.get(1).copied().unwrap_or(0)) < OLDEST_API;
    lines.add(
        "api",
        failed(old),
        format!("the engine speaks API {}", engine.version),
        "Docker 20.10 or later is needed",
    );
    let info = engine.get("/info").await?;
    let swarm = &info["Swarm"];
    let manager = swarm["LocalNodeState"] == "active" && swarm["ControlAvailable"] == true;
    let state = swarm["LocalNodeState"].as_str().unwrap_or("unknown");
    let text = if manager {
        "the engine is a manager's".into()
    } else {
        format!("the engine is no manager's (swarm: {state})")
    };
    let hint = if state == "active" {
        "name a manager's engine with --host or DOCKER_HOST"
    } else {
        "swarmguard init, or docker swarm init"
    };
    lines.add("manager", failed(!manager), text, hint);
    of_engine(&mut lines, &info);
    if !manager {
        return Ok(lines.0);
    }
    let spec = engine.get("/swarm").await?;
    let locked = spec["Spec"]["EncryptionConfig"]["AutoLockManagers"] == true;
    let text = if locked {
        "autolock is on: managers' certificates cannot be read"
    } else {
        "certificates can be read (no autolock)"
    };
    lines.add("autolock", failed(locked), text, "make certificates (swarmguard-coordinator certs create) and set SWARMGUARD_IDENTITY=files:…, or docker swarm update --autolock=false");
    of_nodes(&mut lines, &engine.list("/nodes", &json!({})).await?);
    if pre {
        of_ports(&mut lines, &engine.list("/services", &json!({})).await?);
    }
    Ok(lines.0)
}

fn of_engine(lines: &mut Lines, info: &Value) {
    let cgroup = info["CgroupVersion"].as_str().unwrap_or("1");
    lines.add(
        "cgroup",
        failed(cgroup != "2"),
        format!("cgroup v{cgroup} on this node"),
        "boot with systemd.unified_cgroup_hierarchy=1: the agent reads cgroup v2",
    );
    let kernel = info["KernelVersion"].as_str().unwrap_or("unknown");
    let parts: Vec<u32> = kernel.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    let old = parts.len() >= 2 && (parts[0], parts[1]) < (5, 8);
    lines.add(
        "kernel",
        warning(old),
        format!("kernel {kernel} on this node"),
        "5.8 or later: older kernels give the agent no BPF ring buffer, and it samples only",
    );
    let quota = info["CpuCfsQuota"] != false;
    let text = if quota {
        "the engine takes CPU limits"
    } else {
        "the engine takes no CPU limits (no cpu controller in cgroup v2)"
    };
    lines.add("cpu_limits", warning(!quota), text, "install leaves the limits out; nothing is to be done");
    let skew =
        info["SystemTime"].as_str().and_then(seconds).map(|engine| engine.abs_diff(clock::wall_ms() / 1_000));
    if let Some(skew) = skew {
        lines.add(
            "clock",
            warning(skew > MAX_SKEW_S),
            format!("its clock and ours differ by {skew}s"),
            "run NTP on all nodes: certificates are valid by the clock",
        );
    }
}

/// Seconds since the Unix epoch, of an RFC 3339 time in UTC.
fn seconds(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    // Days from the civil date, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    Some(
        (days.checked_sub(719_468)?) * 86_400
            + number(11..13)? * 3_600
            + number(14..16)? * 60
            + number(17..19)?,
    )
}

fn of_nodes(lines: &mut Lines, nodes: &[Value]) {
    let host = |node: &&Value| node["Description"]["Hostname"].as_str().unwrap_or_default().to_owned();
    let named = |wanted: &dyn Fn(&Value) -> bool| {
        nodes.iter().filter(|node| wanted(node)).map(|node| host(&node)).collect::<Vec<_>>()
    };
    let down = named(&|node| node["Status"]["State"] != "ready");
    let text = if down.is_empty() {
        format!("{} nodes, all ready", nodes.len())
    } else {
        format!("not ready: {}", down.join(", "))
    };
    lines.add(
        "nodes",
        warning(!down.is_empty()),
        text,
        "docker node ls; a node that is gone for good: docker node rm",
    );
    let managers = named(&|node| node["Spec"]["Role"] == "manager").len();
    lines.add(
        "quorum",
        warning(managers < 3),
        format!("{managers} {}", status::plural(managers, "manager")),
        "3 or 5 managers go on when one is lost",
    );
    let foreign = named(&|node| node["Description"]["Platform"]["OS"] != "linux");
    if !foreign.is_empty() {
        lines.add(
            "platform",
            warning(true),
            format!("not Linux: {}", foreign.join(", ")),
            "those nodes get no agent and are never a target",
        );
    }
    let cutting =
        named(&|node| cuts(node["Description"]["Engine"]["EngineVersion"].as_str().unwrap_or_default()));
    lines.add(
        "engines",
        warning(!cutting.is_empty()),
        if cutting.is_empty() {
            "no engine that cuts connections (29.0.0 to 29.1.4)".into()
        } else {
            format!("engines 29.0.0 to 29.1.4 cut connections when a replica stops: {}", cutting.join(", "))
        },
        "upgrade those engines to 29.1.5 or later (moby#51651)",
    );
}

fn cuts(version: &str) -> bool {
    let parts: Vec<u32> = version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect();
    matches!(parts.as_slice(), [29, 0, ..]) || matches!(parts.as_slice(), [29, 1, patch, ..] if *patch <= 4)
}

fn of_ports(lines: &mut Lines, services: &[Value]) {
    for (port, protocol) in PORTS {
        let taken = services.iter().find(|service| {
            let ours = service["Spec"]["Labels"].get("swarmguard.role").is_some();
            let ports = service["Endpoint"]["Ports"].as_array();
            !ours
                && ports.is_some_and(|ports| {
                    ports.iter().any(|one| one["PublishedPort"] == port && one["Protocol"] == protocol)
                })
        });
        let text = match taken {
            Some(service) => format!(
                "port {port}/{protocol} is taken by {}",
                service["Spec"]["Name"].as_str().unwrap_or_default()
            ),
            None => format!("port {port}/{protocol} is published by no service"),
        };
        lines.add("ports", failed(taken.is_some()), text, "publish that service on another port");
    }
}

/// Whether SwarmGuard does what it should.
pub fn after(overview: &Overview) -> Vec<Line> {
    let mut lines = Lines(Vec::new());
    let coordination = &overview.coordination;
    let text = match (&coordination.acts, &coordination.leader) {
        (Some(node), _) => format!("the coordinator on {node} acts"),
        (None, Some(leader)) => format!("{leader} leads the swarm; no coordinator acts"),
        (None, None) => "no coordinator acts: the swarm has no leader".into(),
    };
    lines.add(
        "leader",
        failed(coordination.leader.is_none()),
        text,
        "docker node ls: managers must be reachable",
    );
    let fresh = coordination.snapshot_age_ms.is_some_and(|age| age <= 5_000);
    lines.add(
        "reading",
        failed(!fresh),
        if fresh { "Swarm is read" } else { "Swarm was not read for 5s: nothing is decided" },
        "docker service logs swarmguard_coordinator",
    );
    if coordination.observe || coordination.paused {
        lines.add(
            "acts",
            warning(true),
            "nothing is changed: observing or paused",
            "swarmguard observe off, swarmguard resume",
        );
    }
    let own = env!("CARGO_PKG_VERSION");
    let differ = overview.version != own;
    lines.add(
        "version",
        warning(differ),
        format!("coordinator {}, command line {own}", overview.version),
        "swarmguard upgrade, or the command line of that version",
    );
    let silent: Vec<&str> = overview
        .nodes
        .iter()
        .filter(|node| status::node_state(node).1 == Tone::Bad)
        .map(|node| node.hostname.as_str())
        .collect();
    let text = if silent.is_empty() {
        format!("agents of all {} nodes are heard", overview.nodes.len())
    } else {
        format!("not heard, blind or down: {}", silent.join(", "))
    };
    lines.add(
        "agents",
        failed(!silent.is_empty()),
        text,
        "docker service ps swarmguard_agent --no-trunc; UDP 7443 must be open from nodes to managers",
    );
    for service in overview.services.iter().filter(|service| service.own) {
        let short = service.wanted.is_some_and(|wanted| service.running < wanted);
        let wanted = service.wanted.map_or_else(String::new, |wanted| format!("/{wanted}"));
        lines.add(
            "parts",
            failed(short),
            format!("{} {}{wanted} running", service.name, service.running),
            format!("docker service ps {} --no-trunc", service.name),
        );
    }
    let wrong: Vec<&str> = overview
        .services
        .iter()
        .filter(|service| service.labels_invalid)
        .map(|service| service.name.as_str())
        .collect();
    let text = if wrong.is_empty() {
        "labels of all services make sense".into()
    } else {
        format!("labels make no sense: {}", wrong.join(", "))
    };
    lines.add("labels", warning(!wrong.is_empty()), text, "swarmguard explain SERVICE names the label");
    lines.0
}

fn of_service(found: &Explanation) -> Vec<Line> {
    let mut lines = Lines(Vec::new());
    for error in &found.label_errors {
        lines.add("service", failed(true), error.clone(), "docs/labels.md lists what is allowed");
    }
    if let Some(policy) = &found.policy {
        let text = if policy.enabled {
            format!("{} is protected", found.name)
        } else {
            format!("{} is not protected", found.name)
        };
        lines.add("service", warning(!policy.enabled), text, format!("swarmguard enable {}", found.name));
    }
    for finding in &found.preflight {
        let state = if finding.refuses { State::Failed } else { State::Warning };
        lines.add(
            "service",
            Some(state),
            format!("{} ({})", finding.text, finding.code),
            finding.otherwise.clone(),
        );
    }
    lines.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_that_cut_connections_are_known() {
        for bad in ["29.0.0", "29.0.3", "29.1.4", "29.1.0-rc.1"] {
            assert!(cuts(bad), "{bad}");
        }
        for good in ["28.5.2", "29.1.5", "29.3.0", "20.10.24+dfsg1", ""] {
            assert!(!cuts(good), "{good}");
        }
    }

    #[test]
    fn times_of_engines_are_read() {
        assert_eq!(seconds("1970-01-01T00:00:01Z"), Some(1));
        assert_eq!(seconds("2026-11-29T04:34:56.789Z"), Some(1_795_926_896));
        assert_eq!(seconds("2024-02-29T00:00:00+00:00"), Some(1_709_164_800));
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn warnings_fail_only_a_strict_check() {
        let line = |state| Line { code: "x", state, text: String::new(), hint: String::new() };
        assert!(good(&[line(State::Ok), line(State::Warning)], false));
        assert!(!good(&[line(State::Warning)], true) && !good(&[line(State::Failed)], false));
    }
}
