//! How much CPU this container may use: the tightest `cpu.max` on the way from its own cgroup to the root, or the
//! CPUs it may run on.
//!
//! Not `std::thread::available_parallelism`, which rounds half a CPU to one.

use std::path::Path;

/// CPUs that this process may use, as a number such as 0.5 or 4.
pub fn cpus() -> f64 {
    let here = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let online = online();
    quota(Path::new("/sys/fs/cgroup"), &here).map_or(online, |quota| quota.min(online))
}

/// CPUs that the scheduler may place this process on.
fn online() -> f64 {
    rustix::thread::sched_getaffinity(None).map_or(1.0, |set| f64::from(set.count().max(1)))
}

/// The tightest quota between the cgroup named in `proc_cgroup` (the text of `/proc/self/cgroup`) and `root`.
/// `None` where nothing limits, or on cgroup v1.
fn quota(root: &Path, proc_cgroup: &str) -> Option<f64> {
    let path = proc_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut tightest: Option<f64> = None;
    // A path of `..` parts means a cgroup outside this namespace, which cannot be read.
    let inside: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    for depth in 0..=inside.len() {
        let file =
            inside[..depth].iter().fold(root.to_path_buf(), |dir, part| dir.join(part)).join("cpu.max");
        let limit = std::fs::read_to_string(file).ok().and_then(|text| parse(&text));
        tightest = match (tightest, limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    tightest
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn parse(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = words.next()?.parse().ok()?;
    (period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_ancestor_counts() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(quota(root.path(), "0::/a/b\n"), None);
        std::fs::write(root.path().join("a/cpu.max"), "150000 100000\n").unwrap();
        std::fs::write(dir.join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(quota(root.path(), "1:cpu:/x\n0::/a/b\n"), Some(1.5));
        std::fs::write(dir.join("cpu.max"), "50000 100000\n").unwrap();
        assert_eq!(quota(root.path(), "0::/a/b\n"), Some(0.5));
    }

    #[test]
    fn a_private_cgroup_namespace_reads_its_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cpu.max"), "25000 100000\n").unwrap();
        assert_eq!(quota(root.path(), "0::/\n"), Some(0.25));
        assert_eq!(quota(root.path(), "4:cpu,cpuacct:/docker/x\n"), None);
    }

    #[test]
    fn there_is_always_something_to_use() {
        assert!(cpus() > 0.0);
    }
}
