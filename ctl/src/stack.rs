//! Our own stack files as service specs for the engine's API, so that `install` needs neither docker's command line nor
//! a copy of what the files say. Only the keys that these files use are known; another one is an error that a test sees.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::compose::{parse, plain};

/// `deploy/stack.yml`.
pub const STACK: &str = include_str!("../../deploy/stack.yml");
/// Commands with a token.
pub const OPERATOR_TOKEN: &str = include_str!("../../deploy/operator-token.yml");
/// Balancers are let in.
pub const BALANCER_TOKEN: &str = include_str!("../../deploy/balancer-token.yml");
/// A balancer.
pub const BALANCER: &str = include_str!("../../deploy/balancer.yml");
/// For engines that take no CPU limits.
pub const WITHOUT_CPU_LIMITS: &str = include_str!("../../deploy/without-cpu-limits.yml");

/// Label that says which stack an object belongs to.
pub const NAMESPACE: &str = "com.docker.stack.namespace";

/// IDs of what services refer to, by the names in the files.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    /// Networks.
    pub networks: BTreeMap<String, String>,
    /// Secrets.
    pub secrets: BTreeMap<String, String>,
    /// Configs.
    pub configs: BTreeMap<String, String>,
}

/// Files with their variables filled in, the later ones over the earlier.
///
/// # Errors
/// When a variable that is needed is not set, or a file is none.
pub fn merged(files: &[&str], variables: &BTreeMap<String, String>) -> Result<Value, String> {
    let mut whole = json!({});
    for file in files {
        merge(&mut whole, parse(&fill_in(file, variables)?)?);
    }
    Ok(whole)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from),
        (into, from) => *into = from,
    }
}

/// `${NAME}`, `${NAME:-value}` and `${NAME:?words}`.
fn fill_in(text: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = rest.split_at(at);
        filled.push_str(before);
        let end = after.find('}').ok_or("${ without }")?;
        let inner = &after[2..end];
        let (name, otherwise) = match inner.find([':', '-', '?']) {
            Some(at) => (&inner[..at], inner[at..].trim_start_matches(':')),
            None => (inner, ""),
        };
        match (variables.get(name).filter(|value| !value.is_empty()), otherwise.chars().next()) {
            (Some(value), _) => filled.push_str(value),
            (None, Some('?')) => return Err(format!("{name} is not set: {}", &otherwise[1..])),
            (None, Some('-')) => filled.push_str(&otherwise[1..]),
            (None, _) => {}
        }
        rest = &after[end + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Service specs of a merged file.
///
/// # Errors
/// When it holds something that is not known here.
pub fn specs(whole: &Value, namespace: &str, ids: &Ids) -> Result<Vec<Value>, String> {
    let services = whole["services"].as_object().ok_or("no services")?;
    services
        .iter()
        .map(|(name, service)| {
            let of = Service { name, namespace, whole, ids };
            of.spec(service).map_err(|why| format!("{name}: {why}"))
        })
        .collect()
}

/// The real name of an external object.
pub fn external(whole: &Value, kind: &str, name: &str) -> String {
    whole[kind][name]["name"].as_str().unwrap_or(name).to_owned()
}

struct Service<'a> {
    name: &'a str,
    namespace: &'a str,
    whole: &'a Value,
    ids: &'a Ids,
}

impl Service<'_> {
    fn spec(&self, from: &Value) -> Result<Value, String> {
        let fields = from.as_object().ok_or("not a mapping")?;
        let mut container = json!({"Labels": {NAMESPACE: self.namespace}});
        let mut template = json!({"Placement": {}, "RestartPolicy": {}});
        let mut spec = json!({"Name": format!("{}_{}", self.namespace, self.name), "Labels": {NAMESPACE: self.namespace}});
        for (key, value) in fields {
            match key.as_str() {
                "image" => {
                    container["Image"] = value.clone();
                    spec["Labels"]["com.docker.stack.image"] = value.clone();
                }
                "environment" => {
                    let set = value.as_object().ok_or("environment is not a mapping")?;
                    container["Env"] =
                        set.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
                }
                "user" => container["User"] = value.clone(),
                "read_only" => container["ReadOnly"] = value.clone(),
                "stop_grace_period" => container["StopGracePeriod"] = nanos(value)?,
                "cap_drop" => container["CapabilityDrop"] = capabilities(value)?,
                "cap_add" => container["CapabilityAdd"] = capabilities(value)?,
                "healthcheck" => container["Healthcheck"] = healthcheck(value)?,
                "volumes" => container["Mounts"] = list(value, |mount| self.mount(mount))?,
                "secrets" => container["Secrets"] = list(value, |name| self.secret(name))?,
                "configs" => container["Configs"] = list(value, |config| self.config(config))?,
                "networks" => template["Networks"] = list(value, |name| self.network(name))?,
                "logging" => {
                    template["LogDriver"] = json!({"Name": value["driver"], "Options": value["options"]});
                }
                "ports" => {
                    spec["EndpointSpec"] =
                        json!({"Mode": "vip", "Ports": list(value, |port| Ok(port_of(port)))?});
                }
                "deploy" => deploy(value, &mut spec, &mut template)?,
                other => return Err(format!("{other} is not known")),
            }
        }
        template["ContainerSpec"] = container;
        spec["TaskTemplate"] = template;
        Ok(spec)
    }

    fn mount(&self, from: &Value) -> Result<Value, String> {
        let read_only = from["read_only"].as_bool().unwrap_or(false);
        if from["type"] == "tmpfs" {
            let size = from["tmpfs"]["size"].as_u64().ok_or("a tmpfs has no size in bytes")?;
            return Ok(json!({
                "Type": "tmpfs", "Target": from["target"], "TmpfsOptions": {"SizeBytes": size},
            }));
        }
        let source = from["source"].as_str().ok_or("a volume has no source")?;
        match from["type"].as_str() {
            Some("bind") => {
                Ok(json!({"Type": "bind", "Source": source, "Target": from["target"], "ReadOnly": read_only}))
            }
            Some("volume") => Ok(json!({
                "Type": "volume", "Source": format!("{}_{source}", self.namespace), "Target": from["target"],
                "ReadOnly": read_only, "VolumeOptions": {"Labels": {NAMESPACE: self.namespace}},
            })),
            other => Err(format!("volumes of type {other:?} are not known")),
        }
    }

    fn secret(&self, name: &Value) -> Result<Value, String> {
        let name = name.as_str().ok_or("a secret is no name")?;
        let real = external(self.whole, "secrets", name);
        let id = self.ids.secrets.get(&real).ok_or_else(|| format!("secret {real} has no ID"))?;
        Ok(
            json!({"SecretID": id, "SecretName": real, "File": {"Name": name, "UID": "0", "GID": "0", "Mode": 0o444}}),
        )
    }

    fn config(&self, from: &Value) -> Result<Value, String> {
        let name = from["source"].as_str().ok_or("a config has no source")?;
        let real = external(self.whole, "configs", name);
        let id = self.ids.configs.get(&real).ok_or_else(|| format!("config {real} has no ID"))?;
        Ok(
            json!({"ConfigID": id, "ConfigName": real, "File": {"Name": from["target"], "UID": "0", "GID": "0", "Mode": 0o444}}),
        )
    }

    fn network(&self, name: &Value) -> Result<Value, String> {
        let name = name.as_str().ok_or("a network is no name")?;
        let real = external(self.whole, "networks", name);
        let id = self.ids.networks.get(&real).ok_or_else(|| format!("network {real} has no ID"))?;
        Ok(json!({"Target": id, "Aliases": [self.name]}))
    }
}

fn list(from: &Value, of: impl Fn(&Value) -> Result<Value, String>) -> Result<Value, String> {
    from.as_array().ok_or("not a list")?.iter().map(of).collect()
}

fn capabilities(from: &Value) -> Result<Value, String> {
    list(from, |name| match name.as_str() {
        Some("ALL") => Ok("ALL".into()),
        Some(name) => Ok(format!("CAP_{}", name.trim_start_matches("CAP_")).into()),
        None => Err("a capability is no name".into()),
    })
}

fn nanos(text: &Value) -> Result<Value, String> {
    let shown = plain(text);
    let most = std::time::Duration::from_secs(86_400);
    let length = swarmguard_common::time::duration(&shown, std::time::Duration::ZERO..=most)
        .map_err(|why| format!("{shown}: {why}"))?;
    Ok(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).into())
}

fn healthcheck(from: &Value) -> Result<Value, String> {
    Ok(json!({
        "Test": from["test"], "Interval": nanos(&from["interval"])?, "Timeout": nanos(&from["timeout"])?,
        "Retries": from["retries"], "StartPeriod": nanos(&from["start_period"])?,
    }))
}

fn port_of(from: &Value) -> Value {
    json!({
        "Protocol": from["protocol"], "TargetPort": from["target"], "PublishedPort": from["published"],
        "PublishMode": from["mode"],
    })
}

fn deploy(from: &Value, spec: &mut Value, template: &mut Value) -> Result<(), String> {
    spec["Mode"] = json!({"Replicated": {"Replicas": 1}});
    for (key, value) in from.as_object().ok_or("deploy is not a mapping")? {
        match key.as_str() {
            "mode" if value == "global" => spec["Mode"] = json!({"Global": {}}),
            "replicas" => spec["Mode"] = json!({"Replicated": {"Replicas": number(value)?}}),
            "labels" => {
                for (name, value) in value.as_object().ok_or("labels are not a mapping")? {
                    spec["Labels"][name] = plain(value).into();
                }
            }
            "placement" => {
                if let Some(constraints) = value.get("constraints") {
                    template["Placement"]["Constraints"] = constraints.clone();
                }
                if let Some(most) = value.get("max_replicas_per_node") {
                    template["Placement"]["MaxReplicas"] = most.clone();
                }
            }
            "resources" => template["Resources"] = json!({"Limits": limits(&value["limits"])?}),
            "restart_policy" => {
                template["RestartPolicy"] =
                    json!({"Condition": value["condition"], "Delay": nanos(&value["delay"])?});
            }
            "update_config" => spec["UpdateConfig"] = update(value)?,
            "rollback_config" => spec["RollbackConfig"] = update(value)?,
            other => return Err(format!("deploy.{other} is not known")),
        }
    }
    Ok(())
}

fn limits(from: &Value) -> Result<Map<String, Value>, String> {
    let mut limits = Map::new();
    let cpus = plain(&from["cpus"]);
    let (whole, part) = cpus.split_once('.').unwrap_or((&cpus, "0"));
    let part = format!("{part:0<9}");
    let nano: Option<u64> = whole
        .parse::<u64>()
        .ok()
        .zip(part.get(..9).and_then(|part| part.parse().ok()))
        .map(|(whole, part): (u64, u64)| whole * 1_000_000_000 + part);
    match nano {
        Some(0) | None if matches!(cpus.as_str(), "0" | "") => {}
        Some(nano) => drop(limits.insert("NanoCPUs".into(), nano.into())),
        None => return Err(format!("{cpus:?} is no number of CPUs")),
    }
    let memory = plain(&from["memory"]);
    let mib: u64 = memory
        .strip_suffix('M')
        .and_then(|mib| mib.parse().ok())
        .ok_or_else(|| format!("memory {memory:?} is not so many M"))?;
    limits.insert("MemoryBytes".into(), (mib << 20).into());
    Ok(limits)
}

fn number(from: &Value) -> Result<u64, String> {
    plain(from).parse().map_err(|_| format!("{from} is no number"))
}

fn update(from: &Value) -> Result<Value, String> {
    let mut update =
        json!({"Parallelism": from["parallelism"], "Order": from["order"], "MaxFailureRatio": 0});
    for (key, name) in [("delay", "Delay"), ("monitor", "Monitor")] {
        if let Some(value) = from.get(key) {
            update[name] = nanos(value)?;
        }
    }
    if let Some(action) = from.get("failure_action") {
        update["FailureAction"] = action.clone();
    }
    Ok(update)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> BTreeMap<String, String> {
        let set = [
            ("SWARMGUARD_AGENT_IMAGE", "agent:1"),
            ("SWARMGUARD_COORDINATOR_IMAGE", "coordinator:1"),
            ("SWARMGUARD_BALANCER_IMAGE", "balancer:1"),
            ("BALANCED_NETWORK", "shop_default"),
        ];
        set.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn ids() -> Ids {
        let of = |names: &[&str]| names.iter().map(|name| ((*name).into(), format!("id-{name}"))).collect();
        Ids {
            networks: of(&["host", "shop_default"]),
            secrets: of(&["swarmguard-operator-token", "swarmguard-balancer-token"]),
            configs: of(&["swarmguard-roots"]),
        }
    }

    #[test]
    fn every_file_of_ours_is_understood_to_the_last_key() {
        let whole = merged(&[STACK, OPERATOR_TOKEN, BALANCER_TOKEN, BALANCER], &variables()).expect("sound");
        let specs = specs(&whole, "swarmguard", &ids()).expect("known");
        let names: Vec<&str> = specs.iter().filter_map(|spec| spec["Name"].as_str()).collect();
        assert_eq!(names, ["swarmguard_agent", "swarmguard_balancer", "swarmguard_coordinator"]);
        let (agent, balancer, coordinator) = (&specs[0], &specs[1], &specs[2]);
        assert_eq!(agent["Mode"], json!({"Global": {}}));
        assert_eq!(agent["TaskTemplate"]["Networks"][0]["Target"], "id-host");
        assert_eq!(
            agent["TaskTemplate"]["Resources"]["Limits"],
            json!({"NanoCPUs": 500_000_000, "MemoryBytes": 134_217_728})
        );
        assert_eq!(agent["TaskTemplate"]["ContainerSpec"]["CapabilityAdd"][0], "CAP_SYS_ADMIN");
        assert_eq!(agent["TaskTemplate"]["ContainerSpec"]["Healthcheck"]["Interval"], 15_000_000_000_u64);
        assert_eq!(agent["UpdateConfig"]["FailureAction"], "rollback");
        let container = &coordinator["TaskTemplate"]["ContainerSpec"];
        assert_eq!(container["Image"], "coordinator:1");
        assert_eq!(container["Secrets"].as_array().map(Vec::len), Some(2));
        assert_eq!(container["Mounts"][2]["Source"], "swarmguard_state");
        assert_eq!(
            container["Mounts"][3],
            json!({"Type": "tmpfs", "Target": "/run/swarmguard", "TmpfsOptions": {"SizeBytes": 1_048_576}})
        );
        for spec in &specs {
            assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["ReadOnly"], true, "{}", spec["Name"]);
        }
        let env = container["Env"].as_array().expect("a list");
        assert!(env.contains(&"SWARMGUARD_OBSERVE=false".into()), "{env:?}");
        assert!(
            env.contains(&"SWARMGUARD_OPERATOR_TOKEN_FILE=/run/secrets/swarmguard-operator-token".into())
        );
        assert_eq!(coordinator["TaskTemplate"]["Networks"][0]["Target"], "id-host");
        assert!(
            coordinator["EndpointSpec"]["Ports"].as_array().is_none_or(Vec::is_empty),
            "the host has them"
        );
        assert_eq!(coordinator["Labels"]["swarmguard.role"], "coordinator");
        assert_eq!(balancer["Mode"], json!({"Replicated": {"Replicas": 2}}));
        assert_eq!(balancer["TaskTemplate"]["Placement"], json!({"MaxReplicas": 1}));
        assert_eq!(balancer["TaskTemplate"]["Networks"][0]["Target"], "id-shop_default");
    }

    #[test]
    fn no_service_of_any_stack_file_can_write_to_its_root_or_has_more_rights_than_it_names() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let mut seen = 0;
        for entry in std::fs::read_dir(directory).expect("it is there") {
            let path = entry.expect("readable").path();
            if path.extension().is_none_or(|it| it != "yml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text");
            let file = crate::compose::parse(&text).expect("sound");
            let services = file["services"].as_object().expect("services");
            // Files that only add to another one have no image.
            for (name, service) in services.iter().filter(|(_, service)| !service["image"].is_null()) {
                let place = format!("{name} of {}", path.display());
                assert_eq!(service["read_only"], true, "{place}");
                assert_eq!(service["cap_drop"], json!(["ALL"]), "{place}");
                assert!(service["privileged"].is_null(), "{place}");
                seen += 1;
            }
        }
        assert!(seen >= 5, "{seen} services");
    }

    #[test]
    fn limits_are_left_out_where_engines_take_none() {
        let whole = merged(&[STACK, WITHOUT_CPU_LIMITS], &variables()).expect("sound");
        let specs = specs(&whole, "sg", &ids()).expect("known");
        assert_eq!(specs[0]["TaskTemplate"]["Resources"]["Limits"], json!({"MemoryBytes": 134_217_728}));
    }

    #[test]
    fn a_missing_variable_and_an_unknown_key_are_named() {
        let error = merged(&[STACK], &BTreeMap::new()).expect_err("no image");
        assert!(error.contains("SWARMGUARD_AGENT_IMAGE"), "{error}");
        let odd = json!({"services": {"x": {"image": "a", "privileged": true}}});
        let error = specs(&odd, "sg", &ids()).expect_err("not known");
        assert!(error.contains("x: privileged"), "{error}");
    }
}
