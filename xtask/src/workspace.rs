//! Where the work tree is, and the cargo that belongs to it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root, where `target` is.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The cargo that runs this program, for the workspace.
///
/// Without what cargo told this program about its own package: build scripts of dependencies ask for those variables, and
/// all that stands on them would be compiled again whenever a developer calls cargo without xtask, or the other way round.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let own = |prefix: &str| name.to_str().is_some_and(|name| name.starts_with(prefix));
        if own("CARGO_PKG_") || own("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}
