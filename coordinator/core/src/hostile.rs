//! Everything that reads what an engine or an operator wrote, to be called with any bytes at all: the fuzz targets in
//! `fuzz/` and the tests in `tests/hostile.rs` do. Each function panics on a defect and answers nothing otherwise.

use serde_json::Value;
use swarmguard_common::labels::ServicePolicy;

use crate::{
    policy::constraint,
    swarm::{
        Node, RecordObject, Service, Task,
        engine::{self, AnyTask, FromEngine},
    },
};

/// Longest list that is read object by object for comparison.
const MAX_COMPARED: usize = 64;

/// Lists of objects as an engine answers them.
pub fn engine_lists(data: &[u8]) {
    let nodes = listed::<Node>(data);
    listed::<Service>(data);
    listed::<Task>(data);
    listed::<AnyTask>(data);
    listed::<RecordObject>(data);
    // What a service may ask of a node, against nodes that say anything of themselves.
    let text = String::from_utf8_lossy(data);
    for node in nodes.iter().take(4) {
        let all: Vec<&str> = text.split('"').take(MAX_COMPARED).collect();
        let whole = constraint::satisfied(node, all.iter().copied());
        let first = all.iter().find(|one| constraint::satisfied(node, [**one]).is_err());
        assert_eq!(whole.err(), first.copied(), "the first constraint that does not hold is the one named");
    }
}

/// However a list is read, the same objects come of it, and one odd object costs no other.
fn listed<T: FromEngine>(data: &[u8]) -> Vec<T> {
    let Ok(found) = engine::list::<T>(data) else {
        // A list with anything in it is read; only what is no list, or is cut off, is an error.
        assert!(
            !matches!(serde_json::from_slice(data), Ok(Value::Array(_) | Value::Null)),
            "a list was refused"
        );
        return Vec::new();
    };
    if let Ok(Value::Array(objects)) = serde_json::from_slice::<Value>(data)
        && objects.len() <= MAX_COMPARED
    {
        let odd = found.odd.is_some();
        let single: Vec<_> = objects.into_iter().map(engine::one::<T>).collect();
        assert_eq!(single.iter().filter(|one| matches!(one, Ok(Some(_)))).count(), found.items.len());
        assert_eq!(odd, single.iter().any(Result::is_err), "odd objects are told of, and only they");
    }
    found.items
}

/// Labels of a service, one `key=value` a line.
pub fn labels(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let labels: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let errors = match ServicePolicy::from_labels(labels.iter().copied()) {
        Ok(policy) => {
            if let Some(route) = &policy.route {
                assert!(policy.route_errors.is_empty() && route.port > 0, "balanced in spite of an error");
                assert!(route.path.starts_with('/') && route.health_path.starts_with('/'));
                for host in &route.hosts {
                    assert!(!host.is_empty() && !host.contains(char::is_whitespace), "{host:?}");
                    assert_eq!(*host, host.to_ascii_lowercase());
                    let name = host.strip_prefix("*.").unwrap_or(host);
                    assert!(name == "*" || !name.contains('*'), "{host:?} would match too much");
                }
            }
            policy.route_errors
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused for no reason");
            errors
        }
    };
    for error in errors {
        assert!(error.key.starts_with("swarmguard."), "a label that is not ours is refused: {error}");
    }
    // Labels of others change nothing.
    let ours = labels.iter().copied().filter(|(key, _)| key.starts_with("swarmguard."));
    assert_eq!(ServicePolicy::from_labels(labels.iter().copied()), ServicePolicy::from_labels(ours));
}
