//! Cgroups that look like containers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Empty cgroups with the names of containers, below one directory of their own; removed when dropped.
pub struct Groups {
    root: PathBuf,
    dir: PathBuf,
    count: usize,
}

impl Groups {
    pub fn make(root: &Path, count: usize) -> Result<Self> {
        let dir = root.join(format!("swarmguard-bench-{}", std::process::id()));
        fs::create_dir_all(&dir)
            .with_context(|| format!("cannot make {}: this needs root", dir.display()))?;
        for place in [root, &dir] {
            enable(place);
        }
        let made = Self { root: root.into(), dir, count };
        for index in 0..count {
            fs::create_dir_all(made.dir.join(name(index)))?;
        }
        Ok(made)
    }

    /// The hierarchy.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that holds them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, index: usize) -> PathBuf {
        self.dir.join(name(index))
    }

    pub fn len(&self) -> usize {
        self.count
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for index in 0..self.count {
            // What still holds a process stays; the next boot removes it.
            let _ = fs::remove_dir(self.dir.join(name(index)));
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

/// As long as a container's, and like those told apart by the first twelve digits, which monitors show.
fn name(index: usize) -> String {
    format!("{index:012x}{:052x}", 0)
}

/// Every controller that there is; where cgroup v1 has one, it is not.
fn enable(dir: &Path) {
    for controller in ["cpu", "memory", "io"] {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}
