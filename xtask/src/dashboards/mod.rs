//! `cargo xtask dashboards`: Grafana's dashboards, written from one description ([`panels`]), so that what they show and
//! what the programs call it cannot drift apart: a test holds the files against the description, and every name in a query
//! against `docs/metrics.md`, which the programs themselves are held to.

pub mod panels;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::workspace::root;

/// `cargo xtask dashboards`.
#[derive(clap::Args)]
pub struct Args {}

/// A dashboard.
pub struct Dashboard {
    /// Its file and its address in Grafana.
    pub uid: &'static str,
    /// Its name.
    pub title: &'static str,
    /// A variable by which it is filtered: its name and where its values come from.
    pub filter: Option<(&'static str, &'static str)>,
    /// What it shows, from left to right and top to bottom.
    pub panels: &'static [Panel],
}

/// A panel.
pub struct Panel {
    /// What it shows.
    pub title: &'static str,
    /// How.
    pub kind: Kind,
    /// Grafana's word for the unit of its values.
    pub unit: &'static str,
    /// A query, and what a line of it is called.
    pub queries: &'static [(&'static str, &'static str)],
}

/// How a panel looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One figure.
    Figure,
    /// Lines over time.
    Lines,
}

impl Kind {
    /// Width and height on Grafana's grid of 24 columns.
    const fn size(self) -> (u32, u32) {
        match self {
            Self::Figure => (6, 4),
            Self::Lines => (12, 8),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Figure => "stat",
            Self::Lines => "timeseries",
        }
    }
}

const COLUMNS: u32 = 24;

/// Writes all dashboards.
///
/// # Errors
/// Where a file cannot be written.
pub fn run(_: &Args) -> Result<ExitCode> {
    for dashboard in panels::ALL {
        let path = path(dashboard);
        fs::write(&path, text(dashboard)).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn path(dashboard: &Dashboard) -> PathBuf {
    root().join("deploy/grafana/dashboards").join(format!("{}.json", dashboard.uid))
}

/// The file of a dashboard.
pub fn text(dashboard: &Dashboard) -> String {
    let mut text = serde_json::to_string_pretty(&document(dashboard)).unwrap_or_default();
    text.push('\n');
    text
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn document(dashboard: &Dashboard) -> Value {
    let (mut panels, mut at, mut row) = (Vec::new(), (0, 0), 0);
    for (id, panel) in (1_u32..).zip(dashboard.panels) {
        let (width, height) = panel.kind.size();
        if at.0 + width > COLUMNS {
            at = (0, at.1 + row);
            row = 0;
        }
        panels.push(one(panel, id, json!({"x": at.0, "y": at.1, "w": width, "h": height})));
        at.0 += width;
        row = row.max(height);
    }
    let mut variables = vec![json!({
        "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0
    })];
    if let Some((name, query)) = dashboard.filter {
        variables.push(json!({
            "name": name, "label": name, "type": "query", "datasource": datasource(), "query": query,
            "definition": query, "includeAll": true, "multi": true, "allValue": ".*", "refresh": 2, "sort": 1,
            "current": {"text": "All", "value": "$__all"}
        }));
    }
    json!({
        "uid": format!("swarmguard-{}", dashboard.uid),
        "title": format!("SwarmGuard / {}", dashboard.title),
        "tags": ["swarmguard"],
        "schemaVersion": 39,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "tags": ["swarmguard"], "title": "SwarmGuard", "asDropdown": true,
            "includeVars": true, "keepTime": true}],
        "annotations": {"list": [{
            "name": "actions that ended", "datasource": datasource(), "enable": true, "iconColor": "blue",
            "expr": panels::ENDED, "titleFormat": "{{kind}} {{outcome}}", "step": "15s"
        }]},
        "templating": {"list": variables},
        "panels": panels,
    })
}

fn one(panel: &Panel, id: u32, place: Value) -> Value {
    let targets: Vec<Value> = ('A'..='Z')
        .zip(panel.queries)
        .map(|(letter, (query, name))| {
            json!({"refId": letter.to_string(), "datasource": datasource(), "expr": query, "legendFormat": name,
                "instant": panel.kind == Kind::Figure, "range": panel.kind == Kind::Lines})
        })
        .collect();
    let custom = json!({"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never",
        "spanNulls": false});
    let options = match panel.kind {
        Kind::Figure => json!({"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
            "colorMode": "value", "graphMode": "none", "textMode": "auto"}),
        Kind::Lines => json!({"legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
            "tooltip": {"mode": "multi", "sort": "desc"}}),
    };
    json!({
        "id": id, "title": panel.title, "type": panel.kind.word(), "datasource": datasource(), "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": options, "targets": targets,
    })
}

/// A query as Grafana would send it, with everything chosen.
pub fn filled(query: &str) -> String {
    query
        .replace("$__rate_interval", "20s")
        .replace("$__interval", "20s")
        .replace("$service", ".*")
        .replace("$node", ".*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_the_description_says() {
        for dashboard in panels::ALL {
            let path = path(dashboard);
            let there = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(there, text(dashboard), "{}: run `cargo xtask dashboards`", path.display());
        }
    }

    #[test]
    fn panels_lie_beside_each_other_and_every_query_has_a_datasource() {
        for dashboard in panels::ALL {
            let document = document(dashboard);
            let panels = document["panels"].as_array().expect("a list");
            assert_eq!(panels.len(), dashboard.panels.len());
            let mut cells = std::collections::BTreeSet::new();
            for panel in panels {
                let of = |field: &str| panel["gridPos"][field].as_u64().expect("a number");
                assert!(of("x") + of("w") <= u64::from(COLUMNS), "{}", panel["title"]);
                for x in of("x")..of("x") + of("w") {
                    for y in of("y")..of("y") + of("h") {
                        assert!(cells.insert((x, y)), "{} lies on another panel", panel["title"]);
                    }
                }
                for target in panel["targets"].as_array().expect("a list") {
                    assert_eq!(target["datasource"], datasource());
                }
                assert!(!panel["targets"].as_array().expect("a list").is_empty());
            }
        }
    }
}
