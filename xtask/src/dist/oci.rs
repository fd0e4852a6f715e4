//! An OCI image layout (image-spec 1.1): one index per program with an image for each processor, all in one directory, as
//! `skopeo`, `podman`, `containerd` and Docker from 25 on read it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::image::{self, Parts};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layout that is being written.
pub struct Layout {
    dir: PathBuf,
    /// One index per program.
    indexes: Vec<Value>,
}

impl Layout {
    /// Begins one in `dir`, which is emptied.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { dir: dir.to_owned(), indexes: Vec::new() })
    }

    /// Takes the images of one program, all processors together, under `reference` (`agent`, `balancer`, …).
    ///
    /// # Errors
    /// Where a blob cannot be written.
    pub fn add(&mut self, reference: &str, images: &[Parts]) -> Result<()> {
        let mut manifests = Vec::new();
        for parts in images {
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self.blob(CONFIG, &parts.config)?,
                "layers": [self.blob(LAYER, &parts.layer)?],
            });
            let mut descriptor = self.blob(MANIFEST, &serde_json::to_vec(&manifest)?)?;
            descriptor["platform"] = parts.platform();
            manifests.push(descriptor);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let mut descriptor = self.blob(INDEX, &serde_json::to_vec(&index)?)?;
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": reference});
        self.indexes.push(descriptor);
        Ok(())
    }

    /// Writes what names all of it.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn finish(self) -> Result<()> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.indexes});
        let path = self.dir.join("index.json");
        fs::write(&path, serde_json::to_vec_pretty(&index)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Result<Value> {
        let digest = image::hex(bytes);
        let path = self.dir.join("blobs/sha256").join(&digest);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_is_where_its_digest_says_and_processors_are_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let parts = |architecture: &str, variant: Option<&str>| {
            let mut config = json!({"architecture": architecture, "os": "linux"});
            if let Some(variant) = variant {
                config["variant"] = json!(variant);
            }
            Parts { config: config.to_string().into_bytes(), layer: architecture.as_bytes().to_vec() }
        };
        let mut layout = Layout::create(dir.path()).expect("writable");
        layout.add("agent", &[parts("amd64", None), parts("arm", Some("v7"))]).expect("writable");
        layout.finish().expect("writable");
        let read = |descriptor: &Value| -> Vec<u8> {
            let digest =
                descriptor["digest"].as_str().expect("text").trim_start_matches("sha256:").to_owned();
            let bytes = fs::read(dir.path().join("blobs/sha256").join(&digest)).expect("there");
            assert_eq!((image::hex(&bytes), Some(bytes.len() as u64)), (digest, descriptor["size"].as_u64()));
            bytes
        };
        let top: Value =
            serde_json::from_slice(&fs::read(dir.path().join("index.json")).expect("there")).expect("JSON");
        assert_eq!(top["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "agent");
        let index: Value = serde_json::from_slice(&read(&top["manifests"][0])).expect("JSON");
        assert_eq!(
            index["manifests"][1]["platform"],
            json!({"architecture": "arm", "os": "linux", "variant": "v7"})
        );
        for descriptor in index["manifests"].as_array().expect("a list") {
            let manifest: Value = serde_json::from_slice(&read(descriptor)).expect("JSON");
            read(&manifest["config"]);
            read(&manifest["layers"][0]);
        }
    }
}
