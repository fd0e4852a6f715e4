//! What the programs cost: runs and time of each, from the kernel's own accounting.
//!
//! The kernel measures only while somebody asks it to, because reading the clock twice costs as much as a
//! small program does. So this is for `doctor` and for benches, not for every day.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::Ebpf;
use aya::sys::Stats;

use super::{BpfError, chain};

/// Runs and time of one program while it was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramCost {
    /// The program's name.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// How long in all, ns, the measuring itself included (some 20 ns a run).
    pub total_ns: u64,
}

/// The kernel measures as long as this lives.
#[must_use = "measuring ends when this is dropped"]
pub struct Measuring {
    _on: OwnedFd,
}

/// Begins to measure all BPF programs of the machine.
pub(super) fn measure() -> Result<Measuring, BpfError> {
    let on = aya::sys::enable_stats(Stats::RunTime).map_err(|error| BpfError::Unusable(chain(&error)))?;
    Ok(Measuring { _on: on })
}

pub(super) fn costs(ebpf: &Ebpf) -> Vec<ProgramCost> {
    let mut all: Vec<ProgramCost> = ebpf
        .programs()
        .filter_map(|(name, program)| {
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            let (runs, total_ns) = parse(&text);
            Some(ProgramCost { name: name.to_owned(), runs, total_ns })
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Runs and nanoseconds from `fdinfo`; zero where the kernel does not tell.
fn parse(text: &str) -> (u64, u64) {
    let figure =
        |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0);
    (figure("run_cnt:"), figure("run_time_ns:"))
}

/// Reads a text as `fdinfo`; for fuzzing.
pub(super) fn try_text(text: &str) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_kernels_text() {
        assert_eq!(parse("pos:\t0\nprog_type:\t8\nrun_time_ns:\t1234\nrun_cnt:\t56\n"), (56, 1234));
        assert_eq!(parse("pos:\t0\n"), (0, 0));
        assert_eq!(parse("run_cnt:\t-1\nrun_time_ns:\tx\n"), (0, 0));
    }
}
