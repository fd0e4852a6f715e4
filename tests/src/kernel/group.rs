//! A cgroup that looks like a container's to the agent, removed again at the end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";

/// Which of the engine's two cgroup drivers is imitated.
#[derive(Clone, Copy, Debug)]
pub enum Driver {
    /// `docker/<id>`
    Cgroupfs,
    /// `system.slice/docker-<id>.scope`
    Systemd,
}

/// A container's cgroup.
#[derive(Debug)]
pub struct Group {
    /// 64 hexadecimal digits, as an engine would give.
    pub id: String,
    dir: PathBuf,
}

impl Group {
    /// Makes one; `digit` tells containers apart. `limits` are files and what is written to them, such as
    /// `("cpu.max", "50000 100000")`.
    ///
    /// # Errors
    /// Where there is no cgroup v2 or this is not root.
    pub fn make(driver: Driver, digit: char, limits: &[(&str, &str)]) -> Result<Self> {
        ensure!(digit.is_ascii_hexdigit(), "a container's ID has hexadecimal digits, not {digit}");
        let id: String = std::iter::repeat_n(digit, 64).collect();
        let (parent, name) = match driver {
            Driver::Cgroupfs => ("docker", id.clone()),
            Driver::Systemd => ("system.slice", format!("docker-{id}.scope")),
        };
        enable(Path::new(ROOT))?;
        let parent = Path::new(ROOT).join(parent);
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        enable(&parent)?;
        let dir = parent.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let group = Group { id, dir };
        for (file, text) in limits {
            group.write(file, text)?;
        }
        Ok(group)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The load's process is killed before, but the kernel takes a moment to take it off the cgroup.
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// Lets the children of a cgroup have CPU and memory controllers.
fn enable(dir: &Path) -> Result<()> {
    let path = dir.join("cgroup.subtree_control");
    fs::write(&path, "+cpu +memory")
        .with_context(|| format!("cannot enable controllers in {}", path.display()))
}
