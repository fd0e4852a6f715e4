//! Removing a cluster, whole or half made: by what its state file lists and by what carries its mark.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::state::{self, State};
use super::{native_node, net};
use crate::process;

/// Ends and removes everything of the cluster in `directory`, except the logs. Goes on after a failure, so that as
/// little as possible is left; the state file stays until all is gone.
///
/// # Errors
/// What could not be ended or removed.
pub fn remove(directory: &Path) -> Result<()> {
    let mut results = Vec::new();
    let state = State::load(directory)?;
    let mut running: Vec<process::Identity> =
        state.iter().flat_map(|state| &state.processes).map(|tracked| tracked.identity).collect();
    running.extend(process::marked(directory));
    results.push(process::end(&running));
    if let Some(state) = &state {
        for cgroup in &state.cgroups {
            results.push(native_node::remove_cgroup(cgroup));
        }
        for namespace in state.namespaces.iter().rev() {
            results.push(net::remove(namespace));
        }
    }
    if results.iter().all(Result::is_ok) {
        results.push(remove_files(directory));
    }
    let failed: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// Removes disks, sockets and what native nodes wrote; the state file last, because it says what to remove.
fn remove_files(directory: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        if path == state::file(directory) {
            continue;
        }
        remove_but_logs(&path)?;
    }
    match fs::remove_file(state::file(directory)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", state::file(directory).display()))
        }
        _ => Ok(()),
    }
}

fn remove_but_logs(path: &Path) -> Result<()> {
    let context = || format!("cannot remove {}", path.display());
    if path.is_dir() && !path.is_symlink() {
        // A node's directory keeps its logs; what lies deeper was written by the node.
        for entry in fs::read_dir(path).with_context(context)?.flatten() {
            let inner = entry.path();
            if inner.is_dir() && !inner.is_symlink() {
                fs::remove_dir_all(&inner).with_context(|| format!("cannot remove {}", inner.display()))?;
            } else {
                remove_but_logs(&inner)?;
            }
        }
        return Ok(());
    }
    if path.extension().is_some_and(|extension| extension == "log") {
        return Ok(());
    }
    fs::remove_file(path).with_context(context)
}

/// Where the logs of a failed cluster stay, for an error message.
pub fn explain_logs(directory: &Path) -> String {
    format!(" (its logs stay in {})", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_stay_and_everything_else_goes() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("node1/upper/var")).expect("made");
        for name in
            ["node1/console.log", "node1/disk.img", "node1/upper/var/x.log", "initramfs", "forwarder.log"]
        {
            fs::write(at(name), "x").expect("written");
        }
        remove(place.path()).expect("removed");
        assert!(at("node1/console.log").exists() && at("forwarder.log").exists());
        for gone in ["node1/disk.img", "node1/upper", "initramfs"] {
            assert!(!at(gone).exists(), "{gone}");
        }
        remove(place.path()).expect("a second time is fine");
    }
}
