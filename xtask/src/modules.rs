//! Which kernel modules to load, in which order, from the files that depmod writes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// Files (relative to the modules' directory) that make `wanted` available, dependencies first. Names that the
/// kernel has built in need none.
///
/// # Errors
/// Where a name is neither a module nor built in.
pub fn loading_order(wanted: &[&str], dependencies: &str, builtin: &str) -> Result<Vec<String>> {
    let table: BTreeMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (name(file), (file, needs.split_whitespace().collect())))
        .collect();
    let builtin: BTreeSet<String> = builtin.lines().map(name).collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let key = module.replace('-', "_");
        if builtin.contains(&key) {
            continue;
        }
        let Some((file, needs)) = table.get(&key) else {
            bail!("the kernel has no module {module}");
        };
        // modules.dep lists everything a module needs, nearest first: the last must be loaded first.
        for path in needs.iter().rev().chain(std::iter::once(file)) {
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/erofs/erofs.ko` -> `erofs`, with `-` as `_`, since both spellings are in use.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko").map_or(file, |(stem, _)| stem).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/a/virtio-net.ko: kernel/a/net-failover.ko kernel/a/failover.ko\n\
                                kernel/a/net-failover.ko: kernel/a/failover.ko\n\
                                kernel/a/failover.ko:\n";

    #[test]
    fn dependencies_come_first_and_once() {
        let order = loading_order(&["virtio_net", "net_failover"], DEPENDENCIES, "").expect("all known");
        assert_eq!(order, ["kernel/a/failover.ko", "kernel/a/net-failover.ko", "kernel/a/virtio-net.ko"]);
    }

    #[test]
    fn built_in_needs_nothing_and_unknown_is_an_error() {
        assert!(
            loading_order(&["ext4"], DEPENDENCIES, "kernel/fs/ext4/ext4.ko\n").expect("built in").is_empty()
        );
        assert!(loading_order(&["nothing"], DEPENDENCIES, "").is_err());
    }
}
