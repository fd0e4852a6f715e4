//! What a program is made of, as CycloneDX 1.5: every crate that is compiled into it, from cargo's own resolution for the
//! target. Written by hand, because the format is small and its order must not change from one run to the next.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::workspace::cargo;

/// Cargo's resolution for one target, from which any package's part can be taken.
pub struct Resolution {
    packages: BTreeMap<String, Value>,
    /// By ID: what each package is built with, without what only tests and build scripts need.
    needs: BTreeMap<String, Vec<String>>,
}

impl Resolution {
    /// Asks cargo.
    ///
    /// # Errors
    /// Where cargo fails.
    pub fn of(target: &str) -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target])
            .output()
            .context("cannot start cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Self::read(&serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?)
    }

    fn read(metadata: &Value) -> Result<Self> {
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
        let packages =
            packages.iter().filter_map(|it| Some((it["id"].as_str()?.to_owned(), it.clone()))).collect();
        let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata resolves nothing")?;
        let needs =
            nodes.iter().filter_map(|node| Some((node["id"].as_str()?.to_owned(), normal(node)))).collect();
        Ok(Self { packages, needs })
    }

    /// The bill of materials of one package of ours.
    ///
    /// # Errors
    /// Where there is no such package.
    pub fn bom(&self, package: &str, target: &str) -> Result<Value> {
        let ours = |it: &Value| it["name"] == package && it["source"].is_null();
        let root = self.packages.iter().find(|(_, it)| ours(it)).map(|(id, _)| id);
        let root = root.with_context(|| format!("{package} is no package of this workspace"))?;
        let (mut seen, mut next) = (BTreeSet::new(), vec![root]);
        while let Some(id) = next.pop() {
            if seen.insert(id) {
                next.extend(self.needs.get(id).into_iter().flatten());
            }
        }
        let reference = |id: &String| self.packages.get(id).map(purl);
        let mut components: Vec<Value> = seen
            .iter()
            .filter(|id| **id != root)
            .filter_map(|id| Some(component(self.packages.get(*id)?)))
            .collect();
        components.sort_by_key(|it| it["purl"].as_str().unwrap_or_default().to_owned());
        let mut dependencies: Vec<Value> = seen
            .iter()
            .filter_map(|id| {
                let mut on: Vec<String> = self.needs.get(*id)?.iter().filter_map(reference).collect();
                on.sort();
                on.dedup();
                Some(json!({"ref": reference(id)?, "dependsOn": on}))
            })
            .collect();
        dependencies.sort_by_key(|it| it["ref"].as_str().unwrap_or_default().to_owned());
        let mut about = self.packages.get(root).map(component).context("the package is gone")?;
        about["type"] = json!("application");
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {
                "component": about,
                "properties": [{"name": "cargo:target", "value": target}],
            },
            "components": components,
            "dependencies": dependencies,
        }))
    }
}

/// What a node is compiled with: dependencies of the usual kind, and procedural macros among them.
fn normal(node: &Value) -> Vec<String> {
    let deps = node["deps"].as_array().into_iter().flatten();
    deps.filter(|dep| {
        dep["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|it| it["kind"].is_null()))
    })
    .filter_map(|dep| dep["pkg"].as_str().map(str::to_owned))
    .collect()
}

fn purl(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value) -> Value {
    let purl = purl(package);
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
    });
    if let Some(license) = package["license"].as_str() {
        // The old way of writing OR.
        component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
    }
    if let Some(repository) = package["repository"].as_str() {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Value {
        let dep = |id: &str, kind: Value| json!({"pkg": id, "dep_kinds": [{"kind": kind}]});
        json!({
            "packages": [
                {"id": "a", "name": "guard", "version": "1.0.0", "source": null, "license": "MIT"},
                {"id": "b", "name": "bytes", "version": "1.2.3", "source": "registry", "license": "MIT/Apache-2.0"},
                {"id": "c", "name": "tempfile", "version": "3.0.0", "source": "registry"},
                {"id": "d", "name": "cc", "version": "1.0.0", "source": "registry"},
                {"id": "e", "name": "memchr", "version": "2.0.0", "source": "registry"},
            ],
            "resolve": {"nodes": [
                {"id": "a", "deps": [dep("b", Value::Null), dep("c", json!("dev")), dep("d", json!("build"))]},
                {"id": "b", "deps": [dep("e", Value::Null)]},
            ]},
        })
    }

    #[test]
    fn what_is_compiled_in_is_listed_and_what_only_tests_and_builds_need_is_not() {
        let bom = Resolution::read(&metadata()).expect("sound").bom("guard", "t").expect("ours");
        let names: Vec<_> =
            bom["components"].as_array().expect("a list").iter().map(|it| &it["purl"]).collect();
        assert_eq!(names, ["pkg:cargo/bytes@1.2.3", "pkg:cargo/memchr@2.0.0"]);
        assert_eq!(bom["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bom["metadata"]["component"]["name"], "guard");
        assert_eq!(
            bom["dependencies"][1],
            json!({"ref": "pkg:cargo/guard@1.0.0", "dependsOn": ["pkg:cargo/bytes@1.2.3"]})
        );
        assert!(Resolution::read(&metadata()).expect("sound").bom("bytes", "t").is_err(), "not ours");
    }
}
