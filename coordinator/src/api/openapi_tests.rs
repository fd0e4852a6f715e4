//! The API's description against its routes: every route is described, everything described is there, and every parameter
//! of a path is one that the path takes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    ROUTES,
    read::OPENAPI,
    tests::{get, via, world},
    *,
};

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("JSON")
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let document = document();
    let described: BTreeSet<&str> =
        document["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
    assert_eq!(described, ROUTES.iter().map(|(path, _)| *path).collect());
    let commands =
        &document["paths"]["/api/v1/commands/{command}"]["post"]["parameters"][0]["schema"]["enum"];
    let commands: Vec<&str> = commands.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(commands, super::commands::COMMANDS);
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let (document, mut found) = (document(), BTreeSet::new());
    references(&document, &mut found);
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let named: BTreeSet<String> = schemas.keys().map(|name| format!("#/components/schemas/{name}")).collect();
    assert_eq!(found, named);
}

/// A value that the parameter's schema allows.
fn example(parameter: &Value) -> String {
    let document = document();
    let schema = &parameter["schema"];
    let schema = schema["$ref"].as_str().map_or(schema, |name| {
        let pointer = name.trim_start_matches('#').to_owned();
        document.pointer(&pointer).expect("leads somewhere")
    });
    let word = schema["enum"][0].as_str();
    let name = parameter["name"].as_str().expect("a name");
    match (word, name, schema["type"].as_str()) {
        (Some(word), ..) => word.into(),
        (None, "kinds", _) => "decision,refusal".into(),
        (None, "subnet", _) => "10.0.3.0/24".into(),
        (None, _, Some("integer")) => "1".into(),
        (None, _, Some("boolean")) => "true".into(),
        (None, ..) => "x1".into(),
    }
}

#[tokio::test]
async fn every_parameter_described_is_taken_and_others_are_not() {
    let world = world(None, Plain::Reads);
    for (path, methods) in document()["paths"].as_object().expect("paths") {
        let Some(described) = methods.get("get") else { continue };
        let statuses: BTreeSet<u16> = described["responses"]
            .as_object()
            .expect("some")
            .keys()
            .filter_map(|code| code.parse().ok())
            .collect();
        let none = Vec::new();
        let parameters = described["parameters"].as_array().unwrap_or(&none);
        let in_query = parameters.iter().filter(|parameter| parameter["in"] == "query");
        for parameter in in_query {
            let name = parameter["name"].as_str().expect("a name");
            let asked = format!("{path}?{name}={}", example(parameter));
            let answer = world.call(via("10.0.0.1", false), get(&asked)).await;
            let status = answer.status().as_u16();
            assert!(statuses.contains(&status), "{asked}: {status}");
            assert_ne!(status, 400, "{asked}");
        }
        if path.starts_with("/api/v1/") && path != "/api/v1/openapi.json" {
            let answer = world.call(via("10.0.0.1", false), get(&format!("{path}?nobody_knows=1"))).await;
            assert_eq!(answer.status(), 400, "{path}");
        }
    }
}
