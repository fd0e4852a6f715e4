//! Memory and disk space that is held: touched pages, and a file without a name, which the kernel frees with the process.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use rustix::fs::{FallocateFlags, Mode, OFlags};

use super::DrillError;

const MIB: u64 = 1 << 20;
/// Of a hundred: what stays free however much is asked for. A drill is to show pressure, not to end the node.
const SPARED: u64 = 5;
/// Memory is taken in pieces, so that the kernel has time to make room.
const PIECE: usize = 8 << 20;
/// Written into every page, so that it is there and not the shared page of zeros.
const PAGE: usize = 4_096;

/// Takes memory until the process ends; how much it came to, in MiB.
pub(super) fn memory(wanted_mib: u64) -> Result<u64, DrillError> {
    // Where memory runs out all the same, this process is the one to go.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let text = fs::read_to_string("/proc/meminfo").map_err(DrillError::system("read /proc/meminfo"))?;
    let (total, free) = (kib(&text, "MemTotal:") / 1_024, kib(&text, "MemAvailable:") / 1_024);
    let most = spare(total, free);
    if most == 0 {
        return Err(DrillError::NothingToSpare(format!(
            "{free} of {total} MiB of memory are free, none to spare"
        )));
    }
    let mib = wanted_mib.min(most);
    for _ in 0..mib * MIB / PIECE as u64 {
        let mut piece = vec![0_u8; PIECE];
        for byte in piece.iter_mut().step_by(PAGE) {
            *byte = 1;
        }
        // For as long as the process lives.
        std::mem::forget(std::hint::black_box(piece));
    }
    Ok(mib)
}

/// What may be taken so that a part stays free.
fn spare(total: u64, free: u64) -> u64 {
    free.saturating_sub(total * SPARED / 100)
}

fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// A file without a name of that size, and how large it came to be, in MiB. It is gone when it is closed.
pub(super) fn disk(wanted_mib: u64, on: &Path) -> Result<(File, u64), DrillError> {
    let at = on.display();
    let state =
        rustix::fs::statvfs(on).map_err(|error| DrillError::system(format!("look at {at}"))(error.into()))?;
    let (total, free) = (state.f_blocks * state.f_frsize / MIB, state.f_bavail * state.f_frsize / MIB);
    let most = spare(total, free);
    if most == 0 {
        return Err(DrillError::NothingToSpare(format!(
            "{free} of {total} MiB on {at} are free, none to spare"
        )));
    }
    let file = nameless(on).map_err(DrillError::system(format!("make a file without a name on {at}")))?;
    let mib = wanted_mib.min(most);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, mib * MIB)
        .map_err(|error| DrillError::system(format!("take {mib} MiB of {at}"))(error.into()))?;
    Ok((file, mib))
}

fn nameless(on: &Path) -> io::Result<File> {
    match rustix::fs::open(on, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // Overlays and network file systems know no such files: one that loses its name at once is the same.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            let path = on.join(format!(".swarmguard-drill-{}", std::process::id()));
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_always_stays_free() {
        assert_eq!(spare(1_000, 500), 450);
        assert_eq!(spare(1_000, 50), 0);
        assert_eq!(spare(1_000, 0), 0);
        assert_eq!(kib("MemTotal:       16384 kB\nMemAvailable:    1024 kB\n", "MemAvailable:"), 1_024);
    }

    #[test]
    fn disk_is_taken_and_freed_without_a_trace() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, held) = disk(8, dir.path()).expect("taken");
        assert_eq!((held, file.metadata().expect("known").len()), (8, 8 * MIB));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0, "it has no name");
    }
}
