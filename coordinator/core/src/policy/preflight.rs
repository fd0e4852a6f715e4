//! What stands against moving a service whatever its load, and what weakens the promise of no lost request.

use serde_json::Value;
use swarmguard_common::labels::{Allowance, MigrateMode, ServicePolicy};

use crate::{
    explain::Finding,
    swarm::{Mode, Service},
};

/// Everything that was found, refusals first. `healthcheck` is what spec and agents say of one; `None` is unknown.
pub fn findings(service: &Service, policy: &ServicePolicy, healthcheck: Option<bool>) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(own(service, policy));
    found.extend(mode(service, policy));
    found.extend(health(policy, healthcheck));
    found.extend(mounts(service, policy));
    found.extend(slot_templates(service, policy));
    found.extend(dnsrr(service));
    found.sort_by_key(|finding| !finding.refuses);
    found
}

fn finding(
    code: &'static str,
    refuses: bool,
    text: impl Into<String>,
    otherwise: impl Into<String>,
) -> Finding {
    Finding { code, refuses, text: text.into(), otherwise: otherwise.into() }
}

/// SwarmGuard's own services are never touched.
pub fn own(service: &Service, policy: &ServicePolicy) -> Option<Finding> {
    (policy.role.is_some() || service.is_own()).then(|| {
        finding(
            "own_service",
            true,
            "it is a part of SwarmGuard, which never touches itself",
            "nothing changes this",
        )
    })
}

fn mode(service: &Service, policy: &ServicePolicy) -> Option<Finding> {
    match service.mode {
        Mode::Replicated(1) if policy.migrate != MigrateMode::Surge => Some(finding(
            "singleton",
            true,
            "it has one replica, and two would run for a moment while it moves",
            "swarmguard.migrate=surge if two may run side by side, or a second replica",
        )),
        Mode::Replicated(_) => None,
        Mode::Global | Mode::GlobalJob => Some(finding(
            "global",
            true,
            "a global service runs on every node and cannot leave one",
            "a replicated service",
        )),
        Mode::ReplicatedJob { .. } => {
            Some(finding("job", true, "a job runs to its end where it is", "a replicated service"))
        }
    }
}

fn health(policy: &ServicePolicy, healthcheck: Option<bool>) -> Option<Finding> {
    let text = match healthcheck {
        Some(true) => return None,
        Some(false) => "it has no healthcheck: \"running\" would only mean that the container started",
        None => "no healthcheck is known: its spec has none, and no agent could see one of its image",
    };
    let refuses = !policy.allow.contains(&Allowance::NoHealthcheck);
    Some(finding(
        "no_healthcheck",
        refuses,
        text,
        "a healthcheck, or swarmguard.migrate.allow=no-healthcheck",
    ))
}

fn mounts(service: &Service, policy: &ServicePolicy) -> Option<Finding> {
    let list = service.spec.pointer("/TaskTemplate/ContainerSpec/Mounts").and_then(Value::as_array);
    let local: Vec<String> = list.into_iter().flatten().filter_map(local_mount).collect();
    if local.is_empty() {
        return None;
    }
    let refuses = !policy.allow.contains(&Allowance::LocalVolumes);
    let text = format!("its data stays behind when it moves: {}", local.join(", "));
    let otherwise = "a volume that every node reaches, or swarmguard.migrate.allow=local-volumes";
    Some(finding("local_volumes", refuses, text, otherwise))
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
        "slot_templates",
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
        finding("dnsrr", false, text, "endpoint mode vip, or clients that resolve anew and retry")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{replicated, with_label};
    use serde_json::json;

    /// A service, what is known of its healthcheck, and what is found: code, and whether it refuses.
    type Case = (Service, Option<bool>, &'static [(&'static str, bool)]);

    fn codes(service: &Service, healthcheck: Option<bool>) -> Vec<(&'static str, bool)> {
        let policy = service.policy.clone().expect("labels that make sense");
        findings(service, &policy, healthcheck).iter().map(|found| (found.code, found.refuses)).collect()
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
}
