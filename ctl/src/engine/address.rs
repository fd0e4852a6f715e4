//! Which engine is meant, found as `docker` finds it: `--host`, `--context`, `DOCKER_HOST`, `DOCKER_CONTEXT`, the
//! configured context, the local socket. The environment is passed in, so that tests need not change their own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Outcome};

const LOCAL_SOCKET: &str = "unix:///var/run/docker.sock";

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket on this machine.
    Unix(PathBuf),
    /// A port, with TLS where there are certificates.
    Tcp {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// Directory with `ca.pem`, `cert.pem`, `key.pem`.
        tls: Option<PathBuf>,
    },
    /// A machine where `docker system dial-stdio` is run.
    Ssh {
        /// `user@` in front, if named.
        user: Option<String>,
        /// As ssh knows it.
        host: String,
        /// If not ssh's own.
        port: Option<u16>,
        /// Socket there, if not docker's own.
        socket: Option<String>,
    },
}

/// An engine, and what named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// As the user wrote it.
    pub shown: String,
    /// What named it, for messages.
    pub named_by: String,
}

/// What the user set.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--host`.
    pub host: Option<String>,
    /// `--context`.
    pub context: Option<String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

impl Sources {
    fn env(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn config_dir(&self) -> PathBuf {
        match self.env("DOCKER_CONFIG") {
            Some(dir) => dir.into(),
            None => Path::new(self.env("HOME").unwrap_or("/root")).join(".docker"),
        }
    }

    /// The engine that is meant.
    ///
    /// # Errors
    /// When an address makes no sense, or a context does not exist.
    pub fn find(&self) -> Outcome<Address> {
        if self.host.is_some() && self.context.is_some() {
            return Err(Failure::usage("--host and --context both name an engine").hint("give one of them"));
        }
        if let Some(name) = &self.context {
            return self.context(name, "--context");
        }
        if let Some(host) = &self.host {
            return self.address(host, "--host", None);
        }
        if let Some(host) = self.env("DOCKER_HOST") {
            return self.address(host, "DOCKER_HOST", None);
        }
        if let Some(name) = self.env("DOCKER_CONTEXT") {
            return self.context(name, "DOCKER_CONTEXT");
        }
        match current_context(&self.config_dir())? {
            Some(name) => self.context(&name, "docker context use"),
            None => self.address(LOCAL_SOCKET, "the default", None),
        }
    }

    fn context(&self, name: &str, named_by: &str) -> Outcome<Address> {
        if name == "default" {
            let host = self.env("DOCKER_HOST").unwrap_or(LOCAL_SOCKET);
            return self.address(host, "context default", None);
        }
        let directory = self.config_dir().join("contexts");
        let digest = format!("{:x}", Sha256::digest(name.as_bytes()));
        let file = directory.join("meta").join(&digest).join("meta.json");
        let text = std::fs::read_to_string(&file).map_err(|error| {
            Failure::usage(format!("{named_by}: no docker context {name:?} ({}: {error})", file.display()))
                .hint("docker context ls lists those that there are")
        })?;
        let meta: Meta = serde_json::from_str(&text).map_err(|error| {
            Failure::usage(format!("{named_by}: context {name:?} cannot be read: {error}"))
        })?;
        let docker = meta
            .endpoints
            .docker
            .ok_or_else(|| Failure::usage(format!("{named_by}: context {name:?} names no docker engine")))?;
        let certificates = Some(directory.join("tls").join(digest).join("docker")).filter(|dir| dir.is_dir());
        self.address(&docker.host, &format!("context {name}"), certificates)
    }

    fn address(&self, text: &str, named_by: &str, certificates: Option<PathBuf>) -> Outcome<Address> {
        let refuse = |why: &str| {
            Failure::usage(format!("{named_by}: {text:?} names no engine: {why}"))
                .hint("unix:///path, tcp://host:port and ssh://user@host are known")
        };
        let endpoint = match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Endpoint::Unix(path.into()),
            Some(("unix", _)) => return Err(refuse("the socket's path must begin with /")),
            Some(("ssh", rest)) => ssh(rest).map_err(refuse)?,
            Some((scheme @ ("tcp" | "http" | "https"), rest)) => {
                let tls = certificates.or_else(|| self.certificates());
                if scheme == "https" && tls.is_none() {
                    return Err(refuse(
                        "https needs certificates: set DOCKER_TLS_VERIFY and DOCKER_CERT_PATH",
                    ));
                }
                let usual = if tls.is_some() { 2_376 } else { 2_375 };
                let (host, port) = host_and_port(rest.trim_end_matches('/')).map_err(refuse)?;
                Endpoint::Tcp { host, port: port.unwrap_or(usual), tls }
            }
            Some((scheme, _)) => return Err(refuse(&format!("{scheme} is not known here"))),
            None => return Err(refuse("it has no scheme")),
        };
        Ok(Address { endpoint, shown: text.into(), named_by: named_by.into() })
    }

    fn certificates(&self) -> Option<PathBuf> {
        self.env("DOCKER_TLS_VERIFY").or_else(|| self.env("DOCKER_TLS"))?;
        Some(self.env("DOCKER_CERT_PATH").map_or_else(|| self.config_dir(), PathBuf::from))
    }
}

#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "Endpoints")]
    endpoints: Endpoints,
}

#[derive(Deserialize)]
struct Endpoints {
    docker: Option<Docker>,
}

#[derive(Deserialize)]
struct Docker {
    #[serde(rename = "Host")]
    host: String,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "currentContext")]
    current: Option<String>,
}

fn current_context(directory: &Path) -> Outcome<Option<String>> {
    let file = directory.join("config.json");
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(None) };
    match serde_json::from_str::<Config>(&text) {
        Ok(config) => Ok(config.current.filter(|name| !name.is_empty())),
        Err(error) => Err(Failure::usage(format!("{} cannot be read: {error}", file.display()))
            .hint("mend the file, or name an engine with --host")),
    }
}

fn ssh(rest: &str) -> Result<Endpoint, &'static str> {
    let (place, socket) = match rest.split_once('/') {
        Some((place, path)) if !path.is_empty() => (place, Some(format!("/{path}"))),
        Some((place, _)) => (place, None),
        None => (rest, None),
    };
    let (user, place) = match place.rsplit_once('@') {
        Some((user, place)) => (Some(user.to_owned()), place),
        None => (None, place),
    };
    let (host, port) = host_and_port(place)?;
    // ssh would take it for an option.
    if host.starts_with('-') || user.as_ref().is_some_and(|user| user.is_empty() || user.starts_with('-')) {
        return Err("user and host may not begin with -");
    }
    Ok(Endpoint::Ssh { user, host, port, socket })
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("[ without ]")?;
            (host, after.strip_prefix(':'))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            _ => (text, None),
        },
    };
    if host.is_empty() || host.contains(['/', ' ', '\n']) {
        return Err("the host is missing");
    }
    let port = port.map(|port| port.parse().map_err(|_| "the port is a number up to 65535")).transpose()?;
    Ok((host.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    fn sources(env: &[(&str, &str)]) -> Sources {
        let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Sources { env, ..Sources::default() }
    }

    fn found(sources: &Sources) -> (Endpoint, String) {
        let found = sources.find().expect("an engine");
        (found.endpoint, found.named_by)
    }

    /// A docker configuration with context `prod`, which is the current one, and `tls` with certificates.
    fn config() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, host) in [("prod", "ssh://me@m1"), ("tls", "tcp://m2")] {
            let digest = format!("{:x}", Sha256::digest(name.as_bytes()));
            let meta = dir.path().join("contexts/meta").join(&digest);
            std::fs::create_dir_all(&meta).expect("made");
            let text = format!(
                r#"{{"Name":"{name}","Metadata":{{}},"Endpoints":{{"docker":{{"Host":"{host}","SkipTLSVerify":false}}}}}}"#
            );
            std::fs::write(meta.join("meta.json"), text).expect("written");
        }
        let digest = format!("{:x}", Sha256::digest(b"tls"));
        std::fs::create_dir_all(dir.path().join("contexts/tls").join(digest).join("docker")).expect("made");
        std::fs::write(dir.path().join("config.json"), r#"{"auths":{},"currentContext":"prod"}"#)
            .expect("written");
        let path = dir.path().display().to_string();
        (dir, path)
    }

    #[test]
    fn the_order_is_dockers() {
        let (_dir, path) = config();
        let me = |host: &str| Endpoint::Ssh {
            user: Some("me".into()),
            host: host.into(),
            port: None,
            socket: None,
        };
        let both =
            [("DOCKER_CONFIG", &*path), ("DOCKER_CONTEXT", "tls"), ("DOCKER_HOST", "unix:///run/other.sock")];
        let mut wanted = sources(&both);
        assert_eq!(found(&wanted), (Endpoint::Unix("/run/other.sock".into()), "DOCKER_HOST".into()));
        wanted.context = Some("prod".into());
        assert_eq!(found(&wanted), (me("m1"), "context prod".into()));
        wanted.context = None;
        wanted.host = Some("ssh://me@m3".into());
        assert_eq!(found(&wanted), (me("m3"), "--host".into()));
        assert_eq!(found(&sources(&both[..1])), (me("m1"), "context prod".into()));
        let Endpoint::Tcp { host, port, tls } = found(&sources(&both[..2])).0 else { panic!("tcp") };
        assert_eq!((host.as_str(), port), ("m2", 2_376));
        assert!(tls.is_some_and(|dir| dir.ends_with("docker")));
        let nothing = sources(&[("DOCKER_CONFIG", "/nonexistent")]);
        assert_eq!(found(&nothing), (Endpoint::Unix("/var/run/docker.sock".into()), "the default".into()));
    }

    #[test]
    fn addresses_of_all_kinds_are_understood() {
        let of = |text: &str| sources(&[("DOCKER_HOST", text)]).find().map(|found| found.endpoint);
        let tcp = |host: &str, port| Endpoint::Tcp { host: host.into(), port, tls: None };
        assert_eq!(of("tcp://10.0.0.1").expect("known"), tcp("10.0.0.1", 2_375));
        assert_eq!(of("tcp://[::1]:99").expect("known"), tcp("::1", 99));
        let ssh = of("ssh://m1:2222/run/user/1000/docker.sock").expect("known");
        let socket = Some("/run/user/1000/docker.sock".into());
        assert_eq!(ssh, Endpoint::Ssh { user: None, host: "m1".into(), port: Some(2_222), socket });
        let secure =
            sources(&[("DOCKER_HOST", "tcp://m"), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", "/c")]);
        assert_eq!(found(&secure).0, Endpoint::Tcp { host: "m".into(), port: 2_376, tls: Some("/c".into()) });
    }

    #[test]
    fn senseless_addresses_are_named_with_what_is_known() {
        for bad in [
            "m1:2375",
            "unix://relative",
            "npipe:////./pipe/docker",
            "tcp://:1",
            "tcp://m:99999",
            "ssh://-oProxyCommand=x",
            "ssh://@m",
            "https://m",
            "tcp://[::1",
        ] {
            let failure = sources(&[("DOCKER_HOST", bad)]).find().expect_err(bad);
            assert!(failure.what.contains(bad) && failure.what.contains("DOCKER_HOST"), "{failure}");
            assert_eq!(failure.exit, Exit::Usage);
        }
        let (_dir, path) = config();
        let gone =
            sources(&[("DOCKER_CONFIG", &path), ("DOCKER_CONTEXT", "gone")]).find().expect_err("no context");
        assert!(gone.what.contains("gone") && gone.hint.is_some_and(|hint| hint.contains("context ls")));
        let mut both = sources(&[]);
        (both.host, both.context) = (Some("unix:///a".into()), Some("b".into()));
        assert_eq!(both.find().expect_err("both").exit, Exit::Usage);
    }
}
