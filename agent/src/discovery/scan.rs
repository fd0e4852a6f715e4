//! Containers by the names of their cgroups: `docker-<id>.scope` where the engine leaves cgroups to systemd,
//! `<id>` where it makes them itself, wherever `--cgroup-parent` has put them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use swarmguard_common::domain::ContainerId;

/// Deepest level looked at below the root. Docker uses 2; a slice hierarchy or an engine in a container a few more.
pub const MAX_DEPTH: usize = 10;

/// Most directories looked at in one walk. Beyond, containers may be missed, which the walk says.
pub const MAX_DIRECTORIES: usize = 20_000;

/// Length of a container ID.
const ID_DIGITS: usize = 64;

/// The container that a directory name stands for.
pub fn container_of(name: &str) -> Option<ContainerId> {
    let inner = name.strip_suffix(".scope").and_then(|rest| rest.strip_prefix("docker-")).unwrap_or(name);
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if inner.len() == ID_DIGITS && inner.bytes().all(hex) { inner.parse().ok() } else { None }
}

/// The container whose cgroup is at `path`, unless it lies within another one's.
pub fn container_at(path: &Path) -> Option<ContainerId> {
    let mut names = path.components().filter_map(|part| part.as_os_str().to_str());
    let id = container_of(names.next_back()?)?;
    names.all(|above| container_of(above).is_none()).then_some(id)
}

/// What a walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The directories of containers.
    pub containers: BTreeMap<ContainerId, PathBuf>,
    /// There were more directories than are looked at.
    pub cut_short: bool,
}

/// Walks the whole hierarchy below `root`. Does not look into containers: what an engine runs inside one is part of it.
pub fn walk(root: &Path) -> Found {
    let mut found = Found::default();
    let mut left = MAX_DIRECTORIES;
    let mut level = vec![root.to_path_buf()];
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for dir in level {
            if left == 0 {
                found.cut_short = true;
                return found;
            }
            left -= 1;
            look_into(&dir, &mut found.containers, |other| next.push(other));
        }
        level = next;
    }
    found
}

/// Looks into one directory only, where containers were seen before.
pub fn look(parent: &Path) -> BTreeMap<ContainerId, PathBuf> {
    let mut containers = BTreeMap::new();
    look_into(parent, &mut containers, |_| {});
    containers
}

fn look_into(dir: &Path, containers: &mut BTreeMap<ContainerId, PathBuf>, mut other: impl FnMut(PathBuf)) {
    // A directory that vanished meanwhile holds nothing.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        match name.to_str().and_then(container_of) {
            Some(id) => {
                containers.insert(id, entry.path());
            }
            None => other(entry.path()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn names_of_both_cgroup_drivers() {
        let plain = id('a');
        assert_eq!(container_of(&plain).map(|id| id.to_string()), Some(plain.clone()));
        assert_eq!(
            container_of(&format!("docker-{plain}.scope")).map(|id| id.to_string()),
            Some(plain.clone())
        );
        for other in
            ["docker.service", "init.scope", &plain[1..], &id('g'), &format!("libpod-{plain}.scope"), ""]
        {
            assert_eq!(container_of(other), None, "{other}");
        }
    }

    #[test]
    fn containers_are_found_at_any_depth_but_not_inside_each_other() {
        let root = tempfile::tempdir().expect("a directory");
        let make = |path: String| fs::create_dir_all(root.path().join(path)).expect("made");
        make(format!("system.slice/docker-{}.scope/docker/{}", id('a'), id('9')));
        make(format!("docker/{}", id('b')));
        make(format!("shop.slice/shop-web.slice/docker-{}.scope", id('c')));
        make("system.slice/ssh.service".into());
        let found = walk(root.path());
        let names: Vec<String> = found.containers.keys().map(ToString::to_string).collect();
        assert_eq!(names, [id('a'), id('b'), id('c')]);
        assert!(!found.cut_short);
        assert_eq!(look(&root.path().join("docker")).len(), 1);
        assert!(look(&root.path().join("gone")).is_empty());
    }

    #[test]
    fn depth_is_bounded() {
        let root = tempfile::tempdir().expect("a directory");
        let deep: PathBuf = (0..MAX_DEPTH + 2).map(|level| format!("l{level}")).collect();
        fs::create_dir_all(root.path().join(deep).join(id('a'))).expect("made");
        assert!(walk(root.path()).containers.is_empty());
    }
}
