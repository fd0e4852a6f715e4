//! Plans: drills one after the other, from a TOML file. Unknown keys are an error, so that a typing error shakes nothing.

use std::{fs, path::Path};

use serde::Deserialize;

use crate::failure::{Failure, Outcome};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// Most drills of a plan.
const MAX_DRILLS: usize = 100;

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The drills, in their order.
    pub drill: Vec<Step>,
}

/// A drill of a plan: what would be typed behind `swarmguard drill`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// The fault.
    pub fault: String,
    /// Service or node.
    pub target: String,
    /// Other nodes, for partition and loss; the replica's node for kill-task.
    #[serde(default)]
    pub from: Vec<String>,
    /// Threads, MiB or per cent, as the fault has it.
    #[serde(default)]
    pub amount: Option<u64>,
    /// How long.
    #[serde(default)]
    pub r#for: Option<String>,
    /// Where requests go meanwhile.
    #[serde(default)]
    pub probe: Option<String>,
    /// Share of requests that may fail, in per cent.
    #[serde(default)]
    pub max_errors: Option<String>,
    /// The raft leader may be hit.
    #[serde(default)]
    pub leader: bool,
    /// The last healthy replica may go.
    #[serde(default)]
    pub allow_outage: bool,
}

impl Step {
    /// The words that would be typed.
    pub fn words(&self) -> Vec<String> {
        let mut words =
            vec!["swarmguard".to_owned(), "drill".to_owned(), self.fault.clone(), self.target.clone()];
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.push(format!("--{name}={value}"));
            }
        };
        let amount = match self.fault.as_str() {
            "cpu" => "threads",
            "memory" | "disk" => "mib",
            _ => "percent",
        };
        option(amount, self.amount.map(|amount| amount.to_string()));
        option("from", (!self.from.is_empty()).then(|| self.from.join(",")));
        option("for", self.r#for.clone());
        option("probe", self.probe.clone());
        option("max-errors", self.max_errors.clone());
        for (name, set) in [("--leader", self.leader), ("--allow-outage", self.allow_outage)] {
            if set {
                words.push(name.into());
            }
        }
        words
    }
}

/// Reads a plan.
///
/// # Errors
/// When the file cannot be read, or says something that is not known.
pub fn read(file: &Path) -> Outcome<Plan> {
    let refuse = |why: String| Failure::usage(format!("{}: {why}", file.display()));
    let length = fs::metadata(file).map_err(|error| refuse(error.to_string()))?.len();
    if length > MAX_FILE {
        return Err(refuse(format!("{length} bytes are no plan")));
    }
    let text = fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    let plan: Plan = toml::from_str(&text).map_err(|error| {
        refuse(error.to_string().trim_end().to_owned()).hint("docs/drills.md shows a plan")
    })?;
    if plan.drill.is_empty() || plan.drill.len() > MAX_DRILLS {
        return Err(refuse(format!("it has {} drills; 1 to {MAX_DRILLS} are allowed", plan.drill.len())));
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Outcome<Plan> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("written");
        read(file.path())
    }

    #[test]
    fn a_plan_is_what_would_be_typed() {
        let text = "[[drill]]\nfault = \"cpu\"\ntarget = \"w2\"\namount = 4\nfor = \"30s\"\nleader = true\n\
                    [[drill]]\nfault = \"partition\"\ntarget = \"w2\"\nfrom = [\"m1\", \"w1\"]\nmax-errors = \"5%\"\n";
        let plan = of(text).expect("sound");
        let words: Vec<String> = plan.drill.iter().map(|step| step.words().join(" ")).collect();
        assert_eq!(
            words,
            [
                "swarmguard drill cpu w2 --threads=4 --for=30s --leader",
                "swarmguard drill partition w2 --from=m1,w1 --max-errors=5%"
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_named_and_nothing_is_done() {
        for (text, word) in [
            ("[[drill]]\nfault = \"cpu\"\ntarget = \"w2\"\nfore = \"30s\"\n", "fore"),
            ("[[drill]]\nfault = \"cpu\"\n", "target"),
            ("drill = []\n", "0 drills"),
            ("drills = 1\n", "drills"),
            ("[[drill]\n", "drill"),
        ] {
            let failure = of(text).expect_err(text);
            assert!(failure.what.contains(word), "{text}: {failure}");
        }
    }
}
