//! Whether an answer is as the API's description says: as much of JSON Schema as the description uses.

use serde_json::Value;

fn document() -> Value {
    serde_json::from_str(include_str!("../../openapi.json")).expect("JSON")
}

/// What of the answer of a GET is not as described; empty when all is.
pub fn faults(path: &str, answer: &Value) -> Vec<String> {
    let document = document();
    let content =
        &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
    assert!(content.is_object(), "{path} is not described");
    let mut found = Vec::new();
    compare(&document, content, answer, path, &mut found);
    found
}

fn compare(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let Some(schema) = document.pointer(name.trim_start_matches('#')) else {
            found.push(format!("{at}: {name} is nowhere"));
            return;
        };
        return compare(document, schema, value, at, found);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[key].as_array() {
            let fits = |choice: &Value| {
                let mut faults = Vec::new();
                compare(document, choice, value, at, &mut faults);
                faults.is_empty()
            };
            if !choices.iter().any(fits) {
                found.push(format!("{at}: {value} fits none of {key}"));
            }
            return;
        }
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let is = |name: &str| match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => name == "number" || (name == "integer" && number.is_u64()),
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    };
    if !types.is_empty() && !types.iter().any(|name| is(name)) {
        found.push(format!("{at}: {value} is no {types:?}"));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        found.push(format!("{at}: {value} is none of {words:?}"));
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            compare(document, items, value, &format!("{at}[{index}]"), found);
        }
    }
    let Some(fields) = value.as_object() else { return };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(required) {
            found.push(format!("{at}: {required} is missing"));
        }
    }
    for (name, value) in fields {
        let at = format!("{at}.{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(schema), _) => compare(document, schema, value, &at, found),
            (None, Some(Value::Bool(false))) => found.push(format!("{at} is not described")),
            (None, Some(schema)) => compare(document, schema, value, &at, found),
            (None, None) => {}
        }
    }
}
