//! One drill from its rails to its report.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal as _},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use swarmguard_common::{api::Overview, journal::Entry};
use swarmguard_runtime::clock;

use super::{
    ID, JOBS, LOCK, UNTIL,
    facts::{Facts, Node, Service},
    fault::Fault,
    keep, lock_of,
    probe::{self, Probe},
    rails::{self, Allowed, Judged},
    remove,
    report::{Form, Report, Requests},
    tell, until,
    watch::{Watch, follow},
};
use crate::{
    cli::{DrillArgs, DrillFault},
    commands::{install::STACK, unknown},
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    session::Session,
    stack::NAMESPACE,
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);
/// Longest wait for the job to begin; its image is on the node already.
const BEGINS: Duration = Duration::from_secs(60);
/// Longest wait for everything to be well again.
const HEALS: Duration = Duration::from_secs(180);
/// Requests before errors count for stopping: one of three is no third.
const FEWEST: u64 = 50;
/// How long requests are sent before the fault.
const CALM: Duration = Duration::from_secs(2);
/// Looks at a coordinator that does not answer, after which it counts as lost.
const LOST: u32 = 50;

/// A drill that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What is to be done.
    pub fault: Fault,
    /// How long.
    pub span: Duration,
    /// Where requests go meanwhile.
    pub probe: Option<String>,
    /// Share of requests that may fail, in per cent.
    pub max_errors: f64,
    /// How the report is written.
    pub form: Form,
    /// What the operator takes upon himself.
    pub allowed: Allowed,
    /// Ask nothing.
    pub yes: bool,
    /// Say what would be done.
    pub dry_run: bool,
}

impl Wanted {
    /// From what was typed, with names checked and amounts filled in.
    ///
    /// # Errors
    /// When a name is not known.
    pub async fn of(session: &Session, typed: DrillFault) -> Outcome<Self> {
        let facts = Facts::read(session.engine().await?).await?;
        let node = |wanted: &str| known_node(&facts, wanted);
        let (fault, args) = match typed {
            DrillFault::KillTask { service, from, args } => {
                let service = known_service(&facts, &service)?;
                let at = from.as_deref().map(node).transpose()?;
                let here = |task: &&super::facts::Task| at.is_none_or(|at| task.node == at.id);
                let task = facts
                    .tasks_of(&service.id)
                    .filter(|task| task.running && !task.container.is_empty())
                    .find(here);
                let task = task.ok_or_else(|| {
                    let place = at.map_or_else(String::new, |at| format!(" on {}", at.name));
                    Failure::usage(format!("no replica of {} runs{place}", service.name))
                        .hint("swarmguard ps")
                })?;
                let node = facts.node(&task.node).map(|node| node.name.clone()).unwrap_or_default();
                (
                    Fault::KillTask {
                        service: service.name.clone(),
                        node,
                        container: task.container.clone(),
                    },
                    args,
                )
            }
            DrillFault::KillCoordinator { node: wanted, args } => {
                let at = node(&wanted)?;
                let coordinators =
                    facts.services.iter().find(|one| one.part.as_deref() == Some("coordinator"));
                let task = coordinators
                    .and_then(|service| facts.tasks_of(&service.id).find(|task| task.node == at.id));
                let container = task.map(|task| task.container.clone()).filter(|id| !id.is_empty());
                let container =
                    container.ok_or_else(|| Failure::usage(format!("no coordinator runs on {}", at.name)))?;
                (Fault::KillCoordinator { node: at.name.clone(), container }, args)
            }
            DrillFault::KillNode { node: wanted, args } => {
                (Fault::KillNode { node: node(&wanted)?.name.clone() }, args)
            }
            DrillFault::Cpu { node: wanted, threads, args } => {
                let at = node(&wanted)?;
                let threads = threads.unwrap_or_else(|| at.cpu_millis.div_ceil(1_000).max(1));
                (Fault::Cpu { node: at.name.clone(), threads }, args)
            }
            DrillFault::Memory { node: wanted, mib, args } => {
                let at = node(&wanted)?;
                let half = (at.memory_bytes >> 20) / 2;
                (Fault::Memory { node: at.name.clone(), mib: mib.unwrap_or(half).max(1) }, args)
            }
            DrillFault::Disk { node: wanted, mib, args } => {
                (Fault::Disk { node: node(&wanted)?.name.clone(), mib: mib.unwrap_or(1_024) }, args)
            }
            DrillFault::Partition { node: wanted, from, args } => (cut(&facts, &wanted, &from, 100)?, args),
            DrillFault::Loss { node: wanted, percent, from, args } => {
                (cut(&facts, &wanted, &from, percent)?, args)
            }
        };
        let DrillArgs { span, probe, max_errors, report, leader, allow_outage, dry_run, yes } = args;
        let allowed = Allowed { outage: allow_outage, leader };
        Ok(Self { fault, span, probe, max_errors, form: report, allowed, yes, dry_run })
    }
}

fn known_node<'a>(facts: &'a Facts, wanted: &str) -> Outcome<&'a Node> {
    facts
        .node(wanted)
        .ok_or_else(|| unknown("node", wanted, facts.nodes.iter().map(|node| node.name.as_str())))
}

fn known_service<'a>(facts: &'a Facts, wanted: &str) -> Outcome<&'a Service> {
    facts
        .service(wanted)
        .ok_or_else(|| unknown("service", wanted, facts.services.iter().map(|service| service.name.as_str())))
}

fn cut(facts: &Facts, wanted: &str, from: &[String], percent: u8) -> Outcome<Fault> {
    let node = known_node(facts, wanted)?.name.clone();
    let others: Outcome<Vec<String>> =
        from.iter().map(|other| Ok(known_node(facts, other)?.name.clone())).collect();
    let fault = Fault::Cut { node, from: others?, percent };
    match fault.peers(facts).iter().find(|peer| peer.address.is_empty()) {
        _ if fault.peers(facts).is_empty() => {
            Err(Failure::usage("there is no other node to cut it off from"))
        }
        Some(peer) => Err(Failure::failed(format!("the address of {} is not known", peer.name))),
        None => Ok(fault),
    }
}

/// Plays it.
///
/// # Errors
/// With the exit code that it ends with.
pub async fn run(session: &Session, wanted: &Wanted) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let facts = Facts::read(engine).await?;
    let overview = session.overview().await?;
    let text = wanted.fault.text(wanted.span);
    if let Err(refusal) = rails::check(&facts, &judged(&overview), &wanted.fault, wanted.allowed) {
        return Err(Failure::new(Exit::Refused, refusal.text).code(refusal.code).needs(refusal.needs));
    }
    if wanted.dry_run {
        let value =
            json!({"text": text, "fault": wanted.fault.name(), "parameters": wanted.fault.parameters()});
        session.answer("Plan", value, wanted.fault.name(), || {
            format!("would: {text}\nexpected: {}\n", wanted.fault.expected())
        })?;
        return Ok(Exit::Done);
    }
    typed(session, wanted, &text)?;
    let id = format!("d{}", clock::wall_ms());
    let lock = lock(engine, &id, &text, wanted.span).await?;
    let played = play(session, engine, wanted, &facts, &id).await;
    let unlocked = remove(engine, &format!("/configs/{lock}")).await;
    let report = played?;
    unlocked?;
    keep(engine, &report).await?;
    tell(session, &report, wanted.form)?;
    Ok(if report.passed { Exit::Done } else { Exit::BelowMark })
}

fn judged(overview: &Overview) -> Judged {
    let what = |action: &swarmguard_common::api::ActionNow| {
        let about = action.service.as_deref().or(action.source.as_deref()).unwrap_or_default();
        format!("{} {about}", action.kind)
    };
    Judged {
        health: overview.health.score,
        actions: overview.actions.iter().map(what).collect(),
        paused: overview.coordination.paused,
    }
}

/// The name of the target must be typed, so that a hand that is quicker than its head breaks nothing.
fn typed(session: &Session, wanted: &Wanted, text: &str) -> Outcome {
    if wanted.yes {
        return Ok(());
    }
    let target = wanted.fault.target();
    if !io::stdin().is_terminal() {
        return Err(
            Failure::usage(format!("{text}? Nobody can be asked here")).hint("say --yes if that is meant")
        );
    }
    session.note(&format!("{text}. Type {target} to go on:"));
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    if answer.trim() == target { Ok(()) } else { Err(Failure::failed("nothing was done")) }
}

/// One drill at a time in a swarm: Swarm makes only one config of a name. A lock whose time is over is nobody's.
async fn lock(engine: &Engine, id: &str, text: &str, span: Duration) -> Outcome<String> {
    let end = clock::wall_ms() + u64::try_from((span + BEGINS + HEALS).as_millis()).unwrap_or(u64::MAX);
    let body = json!({
        "Name": LOCK,
        "Labels": {NAMESPACE: STACK, ID: id, UNTIL: end.to_string()},
        "Data": STANDARD.encode(text),
    });
    for _ in 0..2 {
        let answer = engine.raw(Method::POST, "/configs/create", Some(&body)).await?;
        if answer.status.is_success() {
            let made: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            return Ok(made["ID"].as_str().unwrap_or_default().to_owned());
        }
        let held = lock_of(engine).await?;
        match held {
            Some(held) if until(&held) <= clock::wall_ms() => {
                remove(engine, &format!("/configs/{}", held.id)).await?;
            }
            Some(held) => {
                let what = String::from_utf8_lossy(&held.data).into_owned();
                return Err(Failure::new(Exit::Refused, format!("a drill is under way: {what}"))
                    .code("drill_running")
                    .needs("its end, or swarmguard drill stop"));
            }
            None if answer.status == StatusCode::CONFLICT => {}
            None => {
                let words = String::from_utf8_lossy(&answer.body).trim().to_owned();
                return Err(Failure::failed(format!("the drill cannot be locked: {words}")));
            }
        }
    }
    Err(Failure::failed("another drill began at the same moment").hint("swarmguard drill ls"))
}

/// Makes the fault, watches, ends it, and watches until all is well again.
async fn play(
    session: &Session,
    engine: &Engine,
    wanted: &Wanted,
    before: &Facts,
    id: &str,
) -> Outcome<Report> {
    let coordinator = Arc::clone(session.coordinator().await?);
    let newest: Vec<Entry> = coordinator.get("/api/v1/journal?limit=1").await?;
    let mut entries =
        follow(Arc::clone(&coordinator), newest.iter().map(|entry| entry.id).max().unwrap_or(0));
    let target = wanted.probe.as_deref().map(probe::target).transpose().map_err(Failure::usage)?;
    let probe = target.map(Probe::start);
    if probe.is_some() {
        tokio::time::sleep(CALM).await;
    }
    let node = before.node(wanted.fault.node()).map(|node| node.id.clone()).unwrap_or_default();
    let name = format!("{JOBS}{id}");
    let spec = wanted.fault.job(before, &name, &node, wanted.span);
    let at_ms = clock::wall_ms();
    let made = engine.call(Method::POST, "/services/create", Some(&spec)).await?;
    let job = made["ID"].as_str().or_else(|| made["Id"].as_str()).unwrap_or_default().to_owned();
    let mut watch = Watch::begin(before);
    let held = async {
        begins(session, engine, wanted, &job).await?;
        let begun = clock::now();
        watch.made(begun);
        session.note(&format!("{}: {}", wanted.fault.name(), wanted.fault.text(wanted.span)));
        let scope = Scope::of(wanted, before);
        let mut stopped = None;
        let mut silent = 0;
        while clock::now() - begun < wanted.span {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = tokio::signal::ctrl_c() => stopped = Some("Ctrl-C".to_owned()),
            }
            while let Ok(entry) = entries.try_recv() {
                watch.hear(&entry, &scope.reached, &scope.nodes);
            }
            if let Ok(facts) = Facts::read(engine).await {
                watch.look(&facts, clock::now());
            }
            silent = if session.overview().await.is_ok() { 0 } else { silent + 1 };
            let counts = probe.as_ref().map(Probe::counts);
            stopped = stopped
                .or_else(|| {
                    watch.outside.clone().map(|what| format!("an alert outside of what is drilled: {what}"))
                })
                .or_else(|| (silent >= LOST).then(|| "no coordinator answers any more".to_owned()))
                .or_else(|| {
                    let counts = counts.filter(|counts| counts.sent >= FEWEST)?;
                    let share = counts.error_percent();
                    (share > wanted.max_errors).then(|| format!("{share:.1} % of the requests failed"))
                });
            let over = wanted.fault.is_instant() && watch.was_short && watch.is_whole();
            if stopped.is_some() || over {
                break;
            }
        }
        Ok::<_, Failure>((begun, stopped, scope))
    };
    let ended = held.await;
    // The fault ends with its job, whatever came of the watching.
    let removed = remove(engine, &format!("/services/{job}")).await;
    let (begun, stopped, scope) = ended?;
    removed?;
    let held_ms = millis(clock::now() - begun);
    let healing = clock::now();
    while clock::now() - healing < HEALS {
        tokio::time::sleep(LOOK).await;
        while let Ok(entry) = entries.try_recv() {
            watch.hear(&entry, &scope.reached, &scope.nodes);
        }
        let Ok(facts) = Facts::read(engine).await else { continue };
        watch.look(&facts, clock::now());
        let ready =
            facts.nodes.iter().all(|node| node.ready || before.node(&node.id).is_some_and(|old| !old.ready));
        if watch.is_whole() && ready && facts.tasks.iter().all(|task| task.service != job) {
            break;
        }
    }
    let counts = probe.as_ref().map(Probe::counts);
    drop(probe);
    let left_behind = left_behind(engine, before, &name).await?;
    let requests = wanted.probe.clone().zip(counts).map(|(url, counts)| requests(url, &counts));
    let since = |time: swarmguard_common::time::Time| millis(time.since(begun));
    let mut report = Report {
        id: id.to_owned(),
        at_ms,
        fault: wanted.fault.name().into(),
        target: wanted.fault.target().into(),
        what: wanted.fault.text(wanted.span),
        expected: wanted.fault.expected().into(),
        held_ms,
        detected_ms: watch.detected.map(since),
        repaired_ms: watch.repaired.map(since),
        was_short: watch.was_short,
        restarts: watch.restarts,
        requests,
        stopped,
        left_behind,
        passed: false,
        failures: Vec::new(),
        seen: watch.seen.clone(),
    };
    report.failures = failures(&report, &watch, wanted);
    report.passed = report.failures.is_empty();
    Ok(report)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What the fault is about, by name, and names of nodes by ID.
struct Scope {
    reached: BTreeSet<String>,
    nodes: BTreeMap<String, String>,
}

impl Scope {
    fn of(wanted: &Wanted, facts: &Facts) -> Self {
        let nodes = facts.nodes.iter().map(|node| (node.id.clone(), node.name.clone())).collect();
        let mut reached = BTreeSet::from([wanted.fault.node().to_owned(), wanted.fault.target().to_owned()]);
        if let Some(node) = facts.node(wanted.fault.node()) {
            reached.extend(facts.users_on(node).iter().map(|service| service.name.clone()));
        }
        reached.extend(wanted.fault.peers(facts).iter().map(|node| node.name.clone()));
        Self { reached, nodes }
    }
}

/// Waits until the job runs; what is instant has then been done.
async fn begins(session: &Session, engine: &Engine, wanted: &Wanted, job: &str) -> Outcome {
    let begun = clock::now();
    let mut told = false;
    loop {
        let tasks = engine.list("/tasks", &json!({"service": [job]})).await?;
        let state = |task: &Value| task["Status"]["State"].as_str().unwrap_or_default().to_owned();
        for task in &tasks {
            match state(task).as_str() {
                "complete" => return Ok(()),
                // What is instant is done when the job is complete.
                "running" if !wanted.fault.is_instant() => return Ok(()),
                "failed" | "rejected" => {
                    let why = task["Status"]["Err"].as_str().unwrap_or("no reason is told");
                    return Err(Failure::failed(format!("the fault could not be made: {why}"))
                        .hint("docker service logs of the node's engine say more; the node may lack NET_ADMIN or nf_tables"));
                }
                _ => {}
            }
        }
        if clock::now() - begun >= BEGINS {
            return Err(Failure::failed(format!(
                "the fault's job does not start within {}s",
                BEGINS.as_secs()
            ))
            .hint("is the agent's image on that node?"));
        }
        if !told {
            session.note("waiting for the job that makes the fault");
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn requests(url: String, counts: &probe::Counts) -> Requests {
    let (availability_percent, low, high) = counts.availability().unwrap_or((0.0, 0.0, 0.0));
    Requests {
        url,
        sent: counts.sent,
        failed: counts.failed,
        longest_gap_ms: millis(counts.longest_gap),
        availability_percent,
        bounds_percent: (low, high),
        reasons: counts.reasons.clone(),
    }
}

/// What is not as it was: jobs, availabilities, specs.
async fn left_behind(engine: &Engine, before: &Facts, job: &str) -> Outcome<Vec<String>> {
    let after = Facts::read(engine).await?;
    let mut left = Vec::new();
    if after.service(job).is_some() {
        left.push(format!("service {job}"));
    }
    for old in &before.nodes {
        match after.node(&old.id) {
            Some(new) if new.availability == old.availability => {}
            Some(new) => {
                left.push(format!("{} was {} and is {}", old.name, old.availability, new.availability));
            }
            None => left.push(format!("{} is no node any more", old.name)),
        }
    }
    for old in &before.services {
        let Some(new) = after.service(&old.id) else {
            left.push(format!("service {} is gone", old.name));
            continue;
        };
        // Moves and rollbacks of SwarmGuard end with the spec as it was; a number of replicas may have been scaled.
        if new.spec["TaskTemplate"] != old.spec["TaskTemplate"] {
            left.push(format!("{} has another spec", old.name));
        }
    }
    Ok(left)
}

/// Why it did not go as it should.
fn failures(report: &Report, watch: &Watch, wanted: &Wanted) -> Vec<String> {
    let mut failures = Vec::new();
    if let Some(why) = report.stopped.as_ref().filter(|why| *why != "Ctrl-C") {
        failures.push(format!("it was ended early: {why}"));
    }
    if !watch.is_whole() {
        failures.push(format!("a service was still short of replicas {}s after the fault", HEALS.as_secs()));
    }
    if let Some(requests) = report.requests.as_ref().filter(|requests| requests.sent > 0) {
        let share = requests.failed as f64 * 100.0 / requests.sent as f64;
        if share > wanted.max_errors {
            failures
                .push(format!("{share:.2} % of the requests failed, {} % are allowed", wanted.max_errors));
        }
    }
    if report.requests.as_ref().is_some_and(|requests| requests.sent == 0) {
        failures.push("no request came to its end".into());
    }
    if !report.left_behind.is_empty() {
        failures.push(format!("left behind: {}", report.left_behind.join("; ")));
    }
    failures
}

/// Waits until another drill may begin.
///
/// # Errors
/// When the swarm does not become well.
pub async fn well_again(session: &Session) -> Outcome {
    let begun = clock::now();
    loop {
        let overview = session.overview().await;
        let well = overview.as_ref().is_ok_and(|overview| {
            let judged = judged(overview);
            judged.health >= rails::LEAST_HEALTH && judged.actions.is_empty()
        });
        if well {
            return Ok(());
        }
        if clock::now() - begun >= HEALS {
            return Err(Failure::new(
                Exit::BelowMark,
                format!(
                    "the swarm is not well again {}s after the drill; the plan ends here",
                    HEALS.as_secs()
                ),
            )
            .hint("swarmguard health"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
