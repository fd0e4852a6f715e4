//! What stands against moving a service whatever its load, and what weakens the promise of no lost request.

use std::collections::BTreeSet;

use serde_json::Value;
use swarmguard_common::{
    labels::{Allowance, MigrateMode, ServicePolicy},
    time::Time,
};

use crate::{
    explain::Finding,
    rule::Rule,
    swarm::{Mode, Service},
    view::{Seen, View},
};

/// What an engine gives a container to end by itself, in nanoseconds, below which requests are likely to be cut.
const SHORT_GRACE_NS: u64 = 5_000_000_000;
/// Engines that cut established connections from other nodes when a container stops (moby#51651): from, and up to but
/// without, as major, minor and patch.
const CUTTING_ENGINES: [(u64, u64, u64); 2] = [(29, 0, 0), (29, 1, 5)];

/// Everything that is found of a service and of where it runs, refusals first.
pub fn all(view: &View, service: &Service, policy: &ServicePolicy, now: Time) -> Vec<Finding> {
    let mut found = findings(service, policy, &view.seen(service, now));
    found.extend(killed(view, service));
    found.extend(cutting_engines(view, service));
    found
}

/// What is found of a service's spec and of what agents saw on its containers, refusals first.
pub fn findings(service: &Service, policy: &ServicePolicy, seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(own(service, policy));
    found.extend(mode(service, policy));
    found.extend(doubled(service, policy));
    found.extend(health(policy, seen.healthcheck));
    found.extend(mounts(service, policy, seen));
    found.extend(slot_templates(service, policy));
    found.extend(dnsrr(service));
    found.extend(stop_signal(service));
    found.extend(short_grace(service));
    found.sort_by_key(|finding| !finding.refuses);
    found
}

fn finding(code: Rule, refuses: bool, text: impl Into<String>, otherwise: impl Into<String>) -> Finding {
    Finding { code, refuses, text: text.into(), otherwise: otherwise.into() }
}

/// SwarmGuard's own services are never touched.
pub fn own(service: &Service, policy: &ServicePolicy) -> Option<Finding> {
    (policy.role.is_some() || service.is_own()).then(|| {
        finding(
            Rule::OwnService,
            true,
            "it is a part of SwarmGuard, which never touches itself",
            "nothing changes this",
        )
    })
}

fn mode(service: &Service, policy: &ServicePolicy) -> Option<Finding> {
    match service.mode {
        Mode::Replicated(1) if policy.migrate != MigrateMode::Surge => Some(finding(
            Rule::Singleton,
            true,
            "it has one replica, and two would run for a moment while it moves",
            "swarmguard.migrate=surge if two may run side by side, or a second replica",
        )),
        Mode::Replicated(_) => None,
        Mode::Global | Mode::GlobalJob => Some(finding(
            Rule::Global,
            true,
            "a global service runs on every node and cannot leave one",
            "a replicated service",
        )),
        Mode::ReplicatedJob { .. } => {
            Some(finding(Rule::Job, true, "a job runs to its end where it is", "a replicated service"))
        }
    }
}

/// A single replica that must not have a second one beside it even for a moment, also where an operator asks for a move
/// or a drain: its storage is one for both, or its owner has every update stop the old one first.
fn doubled(service: &Service, policy: &ServicePolicy) -> Option<Finding> {
    if service.mode != Mode::Replicated(1) || policy.migrate == MigrateMode::Surge {
        return None;
    }
    let list = service.spec.pointer("/TaskTemplate/ContainerSpec/Mounts").and_then(Value::as_array);
    let shared: Vec<String> = list.into_iter().flatten().filter_map(shared_mount).collect();
    let order = service.spec.pointer("/UpdateConfig/Order").and_then(Value::as_str);
    let text = if !shared.is_empty() {
        format!("it has one replica, and two would write to the same storage: {}", shared.join(", "))
    } else if order == Some("stop-first") {
        "it has one replica, and its update order stop-first says that there are never to be two".to_owned()
    } else {
        return None;
    };
    let otherwise =
        "swarmguard.migrate=surge if two may run side by side; else Swarm's own drain, which stops it first";
    Some(finding(Rule::NeverDoubled, true, text, otherwise))
}

/// Describes a mount that replicas on all nodes write to alike; `None` for what is local, in memory, or only read.
fn shared_mount(mount: &Value) -> Option<String> {
    let text = |pointer: &str| mount.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let is_read = mount.get("ReadOnly").and_then(Value::as_bool) == Some(true);
    let is_volume = matches!(text("/Type"), "volume" | "cluster");
    (is_volume && !is_read && local_mount(mount).is_none())
        .then(|| format!("volume {} at {}", text("/Source"), text("/Target")))
}

fn health(policy: &ServicePolicy, healthcheck: Option<bool>) -> Option<Finding> {
    let text = match healthcheck {
        Some(true) => return None,
        Some(false) => "it has no healthcheck: \"running\" would only mean that the container started",
        None => "no healthcheck is known: its spec has none, and no agent could see one of its image",
    };
    let refuses = !policy.allow.contains(&Allowance::NoHealthcheck);
    Some(finding(
        Rule::NoHealthcheck,
        refuses,
        text,
        "a healthcheck, or swarmguard.migrate.allow=no-healthcheck",
    ))
}

fn mounts(service: &Service, policy: &ServicePolicy, seen: &Seen) -> Option<Finding> {
    let list = service.spec.pointer("/TaskTemplate/ContainerSpec/Mounts").and_then(Value::as_array);
    let mut local: Vec<String> = list.into_iter().flatten().filter_map(local_mount).collect();
    let in_spec = |path: &&String| {
        let mut targets = list.into_iter().flatten().filter_map(|mount| mount.get("Target")?.as_str());
        targets.any(|target| target == path.as_str())
    };
    let of_image = seen.volumes.iter().filter(|path| !in_spec(path));
    local.extend(of_image.map(|path| format!("a volume at {path} that its image asks for")));
    if local.is_empty() {
        return None;
    }
    let refuses = !policy.allow.contains(&Allowance::LocalVolumes);
    let text = format!("its data stays behind when it moves: {}", local.join(", "));
    let otherwise = "a volume that every node reaches, or swarmguard.migrate.allow=local-volumes";
    Some(finding(Rule::LocalVolumes, refuses, text, otherwise))
}

/// Describes a mount whose data stays on the node; `None` for one that goes along (network volume, tmpfs, cluster).
fn local_mount(mount: &Value) -> Option<String> {
    let text = |pointer: &str| mount.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (source, target) = (text("/Source"), text("/Target"));
    match text("/Type") {
        "bind" | "npipe" => Some(format!("bind of {source} at {target}")),
        "volume" if source.is_empty() => Some(format!("anonymous volume at {target}")),
        "volume" => {
            let driver = text("/VolumeOptions/DriverConfig/Name");
            let remote_options = ["nfs", "nfs4", "cifs", "ceph", "glusterfs"];
            let by_network = remote_options.contains(&text("/VolumeOptions/DriverConfig/Options/type"));
            let local = (driver.is_empty() || driver == "local") && !by_network;
            local.then(|| format!("volume {source} at {target}"))
        }
        _ => None,
    }
}

fn slot_templates(service: &Service, policy: &ServicePolicy) -> Option<Finding> {
    let template = service.spec.get("TaskTemplate")?;
    if !mentions_slot(template) {
        return None;
    }
    let refuses = !policy.allow.contains(&Allowance::SlotTemplates);
    let text =
        "it uses {{.Task.Slot}}: its successor gets another number, and for a moment there is one more";
    Some(finding(
        Rule::SlotTemplates,
        refuses,
        text,
        "no slot numbers, or swarmguard.migrate.allow=slot-templates",
    ))
}

fn mentions_slot(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("{{") && text.contains(".Task.Slot"),
        Value::Array(items) => items.iter().any(mentions_slot),
        Value::Object(fields) => fields.values().any(mentions_slot),
        _ => false,
    }
}

fn dnsrr(service: &Service) -> Option<Finding> {
    let mode = service.spec.pointer("/EndpointSpec/Mode").and_then(Value::as_str);
    (mode == Some("dnsrr")).then(|| {
        let text =
            "endpoint mode dnsrr: clients keep the address of a replica that goes, requests may be lost";
        finding(Rule::Dnsrr, false, text, "endpoint mode vip, or clients that resolve anew and retry")
    })
}

fn stop_signal(service: &Service) -> Option<Finding> {
    let signal = service.spec.pointer("/TaskTemplate/ContainerSpec/StopSignal").and_then(Value::as_str)?;
    let kills = ["SIGKILL", "KILL", "9"].iter().any(|kill| signal.eq_ignore_ascii_case(kill));
    kills.then(|| {
        let text = format!(
            "stop signal {signal}: a replica that goes cannot finish what it is at, requests are lost"
        );
        finding(Rule::StopSignal, false, text, "a stop signal that it handles, for instance SIGTERM")
    })
}

fn short_grace(service: &Service) -> Option<Finding> {
    let grace =
        service.spec.pointer("/TaskTemplate/ContainerSpec/StopGracePeriod").and_then(Value::as_u64)?;
    (grace < SHORT_GRACE_NS).then(|| {
        let millis = grace / 1_000_000;
        let text = format!(
            "a replica that goes is killed {millis} ms after it was asked to stop: what takes longer is lost"
        );
        finding(
            Rule::ShortGrace,
            false,
            text,
            "a stop_grace_period as long as its longest request, at least 5 s",
        )
    })
}

/// It did not end when it was asked to, as far as agents with an engine could see.
fn killed(view: &View, service: &Service) -> Option<Finding> {
    view.history.was_killed(&service.id).then(|| {
        let text = "the replica that went last had to be killed (exit 137) after it was asked to stop: it ignores the \
                    stop signal or takes longer than its grace, and what it was at is lost";
        let otherwise = "handling SIGTERM: finish what is under way, then exit; or a longer stop_grace_period";
        finding(Rule::IgnoresStop, false, text, otherwise)
    })
}

fn cutting_engines(view: &View, service: &Service) -> Option<Finding> {
    let snapshot = view.snapshot.as_deref()?;
    let [from, to] = CUTTING_ENGINES;
    let cuts = |version: &str| version_of(version).is_some_and(|version| (from..to).contains(&version));
    let runs_on =
        view.tasks_of(&service.id).filter(|task| task.is_wanted()).filter_map(|task| task.node.as_ref());
    let nodes: BTreeSet<String> = runs_on
        .filter_map(|node| snapshot.nodes.get(node))
        .filter(|node| cuts(&node.engine_version))
        .map(|node| format!("{} ({})", node.hostname, node.engine_version))
        .collect();
    (!nodes.is_empty()).then(|| {
        let text = format!(
            "engines that cut established connections from other nodes when a replica stops (moby#51651): {}",
            nodes.into_iter().collect::<Vec<_>>().join(", ")
        );
        finding(Rule::EngineCutsConnections, false, text, "engine 29.1.5 or later there, or 28")
    })
}

/// Major, minor and patch of an engine's version, whatever a distribution put behind them. What comes before a release is
/// taken for it.
fn version_of(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.splitn(3, '.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agents::AgentEvent,
        swarm::TaskState,
        view::testing::{World, at, replicated, with_label},
    };
    use serde_json::json;
    use swarmguard_common::wire::agent::{ContainerChange, ContainerEvent, ToCoordinator};

    /// A service, what is known of its healthcheck, and what is found: code, and whether it refuses.
    type Case = (Service, Option<bool>, &'static [(&'static str, bool)]);

    fn codes(service: &Service, healthcheck: Option<bool>) -> Vec<(&'static str, bool)> {
        let policy = service.policy.clone().expect("labels that make sense");
        let volumes = Default::default();
        findings(service, &policy, &Seen { healthcheck, volumes })
            .iter()
            .map(|found| (found.code.word(), found.refuses))
            .collect()
    }

    #[test]
    fn volumes_that_an_image_asks_for_stay_behind_too() {
        let mut service = replicated("s1", 2);
        let policy = service.policy.clone().expect("labels that make sense");
        let volumes = std::collections::BTreeSet::from(["/data".to_owned()]);
        let seen = Seen { healthcheck: Some(true), volumes };
        let found = findings(&service, &policy, &seen);
        let [only] = found.as_slice() else { panic!("{found:?}") };
        assert!(only.code == Rule::LocalVolumes && only.refuses && only.text.contains("/data"), "{only:?}");
        // Mounted over by something in memory it holds nothing.
        service.spec["TaskTemplate"]["ContainerSpec"]["Mounts"] =
            json!([{"Type": "tmpfs", "Target": "/data"}]);
        assert_eq!(findings(&service, &policy, &seen), []);
    }

    #[test]
    fn a_single_replica_on_shared_storage_or_stopped_first_is_never_doubled() {
        let with = |pointer: &str, value: Value| {
            let mut service = replicated("s1", 1);
            let (parent, key) = pointer.rsplit_once('/').expect("a path");
            service.spec.pointer_mut(parent).expect("there")[key] = value;
            service
        };
        let nfs = |read_only: bool| {
            let options = json!({"type": "nfs", "o": "addr=10.0.0.9,rw", "device": ":/pg"});
            let driver = json!({"DriverConfig": {"Name": "local", "Options": options}});
            json!([{"Type": "volume", "Source": "pgdata", "Target": "/data", "ReadOnly": read_only, "VolumeOptions": driver}])
        };
        let mounts = |list: Value| with("/TaskTemplate/ContainerSpec/Mounts", list);
        let refuses = |service: &Service| codes(service, Some(true)).contains(&("never_doubled", true));
        let table = [
            (mounts(nfs(false)), true),
            (mounts(nfs(true)), false),
            (mounts(json!([{"Type": "cluster", "Source": "csi", "Target": "/data"}])), true),
            (mounts(json!([{"Type": "tmpfs", "Target": "/tmp"}])), false),
            (with("/UpdateConfig", json!({"Order": "stop-first"})), true),
            (with("/UpdateConfig", json!({"Order": "start-first"})), false),
            (with_label(mounts(nfs(false)), "migrate", "surge"), false),
        ];
        for (service, expected) in table {
            assert_eq!(refuses(&service), expected, "{}", service.spec);
        }
        let mut two = mounts(nfs(false));
        two.mode = Mode::Replicated(2);
        assert!(!refuses(&two), "two write to it already");
    }

    #[test]
    fn a_plain_replicated_service_with_a_healthcheck_may_move() {
        assert_eq!(codes(&replicated("s1", 2), Some(true)), []);
    }

    #[test]
    fn each_refusal_and_its_allowance() {
        let mount = |mount: Value| {
            let mut service = replicated("s1", 2);
            service.spec["TaskTemplate"]["ContainerSpec"]["Mounts"] = json!([mount]);
            service
        };
        let nfs = json!({"Name": "local", "Options": {"type": "nfs"}});
        let table: Vec<Case> = vec![
            (replicated("s1", 2), None, &[("no_healthcheck", true)]),
            (replicated("s1", 2), Some(false), &[("no_healthcheck", true)]),
            (
                with_label(replicated("s1", 2), "migrate.allow", "no-healthcheck"),
                None,
                &[("no_healthcheck", false)],
            ),
            (replicated("s1", 1), Some(true), &[("singleton", true)]),
            (with_label(replicated("s1", 1), "migrate", "surge"), Some(true), &[]),
            (
                mount(json!({"Type": "bind", "Source": "/srv", "Target": "/data"})),
                Some(true),
                &[("local_volumes", true)],
            ),
            (
                mount(json!({"Type": "volume", "Source": "v", "Target": "/data"})),
                Some(true),
                &[("local_volumes", true)],
            ),
            (mount(json!({"Type": "volume", "Target": "/data"})), Some(true), &[("local_volumes", true)]),
            (
                mount(json!({"Type": "volume", "Source": "v", "VolumeOptions": {"DriverConfig": nfs}})),
                Some(true),
                &[],
            ),
            (
                mount(
                    json!({"Type": "volume", "Source": "v", "VolumeOptions": {"DriverConfig": {"Name": "rexray"}}}),
                ),
                Some(true),
                &[],
            ),
            (mount(json!({"Type": "tmpfs", "Target": "/tmp"})), Some(true), &[]),
            (with_label(replicated("s1", 2), "role", "agent"), Some(true), &[("own_service", true)]),
        ];
        for (service, healthcheck, expected) in table {
            assert_eq!(codes(&service, healthcheck), expected, "{:?}", service.spec);
        }
    }

    #[test]
    fn slots_dnsrr_globals_and_our_own_settings_are_found() {
        let mut service = replicated("s1", 2);
        service.spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["ID={{ .Task.Slot }}"]);
        assert_eq!(codes(&service, Some(true)), [("slot_templates", true)]);
        let mut service = replicated("s1", 2);
        service.spec["EndpointSpec"] = json!({"Mode": "dnsrr"});
        assert_eq!(codes(&service, Some(true)), [("dnsrr", false)]);
        let mut service = replicated("s1", 2);
        service.mode = Mode::Global;
        assert_eq!(codes(&service, Some(true)), [("global", true)]);
        let mut service = replicated("s1", 2);
        service.spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["SWARMGUARD_IDENTITY=swarm:/x"]);
        assert_eq!(codes(&service, Some(true)), [("own_service", true)]);
    }

    #[test]
    fn how_it_is_stopped_is_found_and_refuses_nothing() {
        let with = |key: &str, value: Value| {
            let mut service = replicated("s1", 2);
            service.spec["TaskTemplate"]["ContainerSpec"][key] = value;
            codes(&service, Some(true))
        };
        assert_eq!(with("StopGracePeriod", json!(10_000_000_000_u64)), []);
        assert_eq!(with("StopGracePeriod", json!(2_000_000_000_u64)), [("short_grace", false)]);
        assert_eq!(with("StopSignal", json!("SIGTERM")), []);
        assert_eq!(with("StopSignal", json!("SIGKILL")), [("stop_signal", false)]);
    }

    fn all_codes(world: &World) -> Vec<&'static str> {
        let service = replicated("s1", 2);
        let policy = service.policy.clone().expect("labels that make sense");
        all(&world.view, &service, &policy, at(0)).iter().map(|found| found.code.word()).collect()
    }

    #[test]
    fn engines_that_cut_connections_are_named() {
        let table = [
            ("28.5.2", false),
            ("29.0.0", true),
            ("29.1.4", true),
            ("29.1.4+dfsg1", true),
            ("29.1.5", false),
            ("29.10.0", false),
            ("30.0.0", false),
            ("unknown", false),
        ];
        for (version, expected) in table {
            let mut world = World::new(["n1", "n2"]);
            world.service(replicated("s1", 2)).task("t1", "s1", 1, "n1").task("t2", "s1", 2, "n2");
            world.swarm.nodes.get_mut(&"n2".parse().expect("an ID")).expect("there").engine_version =
                version.into();
            world.read(0);
            assert_eq!(all_codes(&world).contains(&"engine_cuts_connections"), expected, "{version}");
        }
    }

    #[test]
    fn a_replica_that_had_to_be_killed_is_found_until_one_ends_by_itself() {
        let mut world = World::new(["n1", "n2"]);
        world.service(replicated("s1", 2)).task("t1", "s1", 1, "n1").task("t2", "s1", 2, "n2").read(0);
        let died = |world: &mut World, (task, node): (&str, &str), status: i32, wanted: bool| {
            let id = task.parse().expect("an ID");
            world.swarm.tasks.get_mut(&id).expect("there").desired =
                if wanted { TaskState::Running } else { TaskState::Shutdown };
            world.read(100);
            let event = ContainerEvent {
                container: format!("c{task}").parse().expect("an ID"),
                task: None,
                what: ContainerChange::Died { status },
                age_ms: 0,
            };
            world.agent(100, node, AgentEvent::Message(ToCoordinator::Container(event)));
            all_codes(world)
        };
        assert_eq!(died(&mut world, ("t1", "n1"), 137, true), [""; 0], "nobody asked it to stop");
        assert_eq!(died(&mut world, ("t1", "n1"), 137, false), ["ignores_stop"]);
        assert_eq!(died(&mut world, ("t2", "n2"), 0, false), [""; 0]);
    }
}
