//! `CHANGELOG.md` by version: what a release says of itself, and the cut that closes "Unreleased".

use anyhow::{Result, bail};

/// The section of `version`, without its heading; that of what is not released where there is none of its own yet.
///
/// # Errors
/// Where neither is there, or it says nothing.
pub fn notes(changelog: &str, version: &str) -> Result<String> {
    let sections = changelog.split("\n## ").skip(1);
    let mut unreleased = None;
    for section in sections {
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let name = heading.trim_start_matches('[').split([']', ' ']).next().unwrap_or_default();
        if name == version {
            return Ok(body.trim().to_owned());
        }
        if name == "Unreleased" {
            unreleased = Some(body.trim().to_owned());
        }
    }
    match unreleased.filter(|text| !text.is_empty()) {
        Some(text) => Ok(text),
        None => bail!("CHANGELOG.md says nothing about {version}, and nothing that is not released"),
    }
}

/// The changelog with what is not released under `version` and `date`.
///
/// # Errors
/// Where that version is there already, or nothing is to be released.
pub fn cut(changelog: &str, version: &str, date: &str) -> Result<String> {
    let heading = format!("## [{version}] - {date}");
    if changelog.lines().any(|line| line.starts_with(&format!("## [{version}]"))) {
        bail!("CHANGELOG.md has a section of {version} already: raise the version in Cargo.toml first");
    }
    let Some((before, after)) = changelog.split_once("\n## Unreleased\n") else {
        bail!("CHANGELOG.md has no section \"## Unreleased\"");
    };
    let body = after.split("\n## ").next().unwrap_or_default();
    if body.trim().is_empty() {
        bail!("CHANGELOG.md says nothing under \"## Unreleased\"");
    }
    Ok(format!("{before}\n## Unreleased\n\n{heading}\n{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# Changelog\n\n## Unreleased\n\n### Added\n- new\n\n## [0.1.0] - 2026-01-01\n\n- first\n";

    #[test]
    fn a_version_has_its_own_notes_and_the_next_one_what_is_not_released() {
        assert_eq!(notes(TEXT, "0.1.0").expect("there"), "- first");
        assert_eq!(notes(TEXT, "0.2.0").expect("not released"), "### Added\n- new");
        assert!(notes("# Changelog\n\n## Unreleased\n", "0.2.0").is_err());
    }

    #[test]
    fn a_cut_closes_what_is_not_released_and_is_not_made_twice() {
        let after = cut(TEXT, "0.2.0", "2026-02-03").expect("new");
        assert!(
            after
                .starts_with("# Changelog\n\n## Unreleased\n\n## [0.2.0] - 2026-02-03\n\n### Added\n- new\n"),
            "{after}"
        );
        assert_eq!(notes(&after, "0.2.0").expect("its own"), "### Added\n- new");
        assert!(after.ends_with("## [0.1.0] - 2026-01-01\n\n- first\n"));
        assert!(cut(&after, "0.2.0", "2026-02-03").is_err() && cut(&after, "0.3.0", "2026-02-03").is_err());
    }
}
