//! `bundle`: what somebody needs who is to help, in one archive, without what is secret: values of environments, command
//! lines, configs and secrets are left out.

use std::{fs::File, path::PathBuf};

use serde_json::{Value, json};
use swarmguard_runtime::clock;

use crate::{
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// What the coordinator is asked for.
const ANSWERS: [&str; 9] = [
    "overview",
    "status",
    "nodes",
    "services",
    "containers",
    "leases",
    "alerts",
    "history?limit=1000",
    "journal?limit=1000",
];
/// What the engine is asked for.
const LISTS: [&str; 3] = ["/services", "/nodes", "/tasks"];

/// Writes the archive.
pub async fn bundle(session: &Session, out: Option<PathBuf>) -> Outcome<Exit> {
    let out = out.unwrap_or_else(|| format!("swarmguard-bundle-{}.tar", clock::wall_ms() / 1_000).into());
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", out.display()));
    let mut archive = tar::Builder::new(File::create_new(&out).map_err(failed)?);
    let mut add = |name: &str, value: &Value| {
        let text = format!("{value:#}\n");
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(clock::wall_ms() / 1_000);
        archive.append_data(&mut header, format!("swarmguard-bundle/{name}.json"), text.as_bytes())
    };
    let mut missing = Vec::new();
    for path in ANSWERS {
        let name = path.split('?').next().unwrap_or(path);
        let answer = match session.coordinator().await {
            Ok(coordinator) => coordinator.get::<Value>(&format!("/api/v1/{path}")).await,
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(value) => add(name, &value).map_err(failed)?,
            Err(failure) => missing.push(format!("{path}: {failure}")),
        }
    }
    if session.global.coordinator.is_empty() {
        let engine = session.engine().await?;
        for path in LISTS {
            let name = format!("engine{}", path.replace('/', "-"));
            match engine.get(path).await {
                Ok(mut value) => {
                    redact(&mut value);
                    add(&name, &value).map_err(failed)?;
                }
                Err(failure) => missing.push(format!("{path}: {failure}")),
            }
        }
        let mut info = engine.get("/info").await?;
        redact(&mut info);
        add("engine-info", &info).map_err(failed)?;
    }
    add("bundle", &json!({"version": env!("CARGO_PKG_VERSION"), "missing": missing})).map_err(failed)?;
    archive.finish().map_err(failed)?;
    for one in &missing {
        session.note(&format!("warning: missing {one}"));
    }
    let path = out.display().to_string();
    session.answer("Bundle", json!({"file": path, "missing": missing}), &path, || {
        format!("{path}: look it over before you give it away\n")
    })?;
    Ok(Exit::Done)
}

/// Takes out what may be secret.
fn redact(value: &mut Value) {
    const HIDDEN: &str = "(left out)";
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), &mut *value) {
                    ("Env", Value::Array(list)) => {
                        for one in list {
                            let name =
                                one.as_str().and_then(|text| text.split('=').next()).unwrap_or_default();
                            *one = format!("{name}={HIDDEN}").into();
                        }
                    }
                    ("Args" | "Command" | "Cmd" | "Data" | "JoinTokens" | "PullOptions", _) => {
                        *value = HIDDEN.into();
                    }
                    ("HttpProxy" | "HttpsProxy" | "NoProxy", Value::String(_)) => *value = HIDDEN.into(),
                    ("Labels", Value::Object(labels)) => {
                        for (name, value) in labels {
                            if !name.starts_with("swarmguard.") && !name.starts_with("com.docker.") {
                                *value = HIDDEN.into();
                            }
                        }
                    }
                    (_, value) => redact(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_leave() {
        let mut spec = json!([{"Spec": {"Labels": {"swarmguard.enable": "true", "pw": "hunter2"}, "TaskTemplate":
            {"ContainerSpec": {"Image": "x", "Env": ["DB=hunter2", "EMPTY"], "Args": ["--pw=hunter2"], "Healthcheck": {"Test": ["CMD", "x"]}}}}}]);
        redact(&mut spec);
        let text = spec.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(
            text.contains("DB=(left out)")
                && text.contains("\"swarmguard.enable\":\"true\"")
                && text.contains("\"Image\":\"x\""),
            "{text}"
        );
    }
}
