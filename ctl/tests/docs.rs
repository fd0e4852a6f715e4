//! docs/cli.md says what the program does: its second half is made from the definition.

use std::{fs, path::Path};

const MARK: &str =
    "<!-- from here on made by `SNAPSHOTS=overwrite cargo test -p swarmguard-ctl --test docs` -->\n";

#[test]
fn the_reference_is_the_definition() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let text = fs::read_to_string(&file).expect("docs/cli.md");
    let (head, reference) = text.split_once(MARK).expect("the mark");
    let made = swarmguard_ctl::commands::manual::reference();
    if std::env::var_os("SNAPSHOTS").is_some_and(|word| word == "overwrite") {
        fs::write(&file, format!("{head}{MARK}{made}")).expect("written");
        return;
    }
    assert!(
        reference == made,
        "docs/cli.md is not what the definition says: run it with SNAPSHOTS=overwrite"
    );
}
