//! Services made by hand for a scenario, as raw specs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A web-stress service to be created.
#[derive(Clone, Debug)]
pub struct Web {
    /// Its name.
    pub name: String,
    /// The image's ID.
    pub image: String,
    /// How many.
    pub replicas: u64,
    /// Published through the routing mesh.
    pub port: u16,
    /// Service labels.
    pub labels: BTreeMap<String, String>,
    /// `TaskTemplate.Placement`.
    pub placement: Value,
    /// `UpdateConfig`.
    pub update: Value,
    /// False takes the image's health check away.
    pub healthcheck: bool,
    /// Environment, `KEY=VALUE`.
    pub env: Vec<String>,
}

impl Web {
    /// A service that SwarmGuard may move, with a health check and nothing unusual.
    pub fn new(name: &str, image: &str, port: u16) -> Self {
        let labels = [
            ("swarmguard.enable", "true"),
            ("swarmguard.migrate", "surge"),
            // Less than a replica is told to use, more than the engine's health checks take on an emulated node.
            ("swarmguard.cpu.high", "30"),
            // It can do all that it ever will once it answers.
            ("swarmguard.warm-up", "2s"),
            ("swarmguard.network.mbps", "200"),
            ("swarmguard.cooldown", "60s"),
        ];
        Web {
            name: name.to_owned(),
            image: image.to_owned(),
            replicas: 1,
            port,
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            placement: json!({}),
            update: json!({"Parallelism": 1, "Order": "start-first", "FailureAction": "pause"}),
            healthcheck: true,
            env: Vec::new(),
        }
    }

    /// With one label more.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The spec that creates it.
    pub fn spec(&self) -> Value {
        let second = 1_000_000_000_u64;
        let health = if self.healthcheck {
            json!({
                "Test": ["CMD", "/web-stress", "healthcheck"],
                "Interval": 4 * second, "Timeout": 20 * second, "Retries": 3, "StartPeriod": 60 * second,
            })
        } else {
            json!({"Test": ["NONE"]})
        };
        json!({
            "Name": self.name,
            "Labels": self.labels,
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": self.image,
                    "Env": self.env,
                    "Healthcheck": health,
                    "StopGracePeriod": 20 * second,
                },
                "Resources": {"Limits": {"MemoryBytes": 256_u64 << 20}},
                "RestartPolicy": {"Condition": "any", "Delay": 2 * second},
                "Placement": self.placement,
            },
            "Mode": {"Replicated": {"Replicas": self.replicas}},
            "UpdateConfig": self.update,
            "EndpointSpec": {"Ports": [
                {"Protocol": "tcp", "TargetPort": 8080, "PublishedPort": self.port, "PublishMode": "ingress"},
            ]},
        })
    }
}
