//! What the kernel says about this process, for `/metrics`.

use std::fs;

use crate::exposition::Scrape;

/// Ticks of the kernel's CPU accounting a second, the same on every Linux that runs containers.
const TICKS: f64 = 100.0;

crate::families! {
    CPU = Counter "process_cpu_seconds_total" [] "CPU time that the process used";
    START = Gauge "process_start_time_seconds" [] "when the process began, seconds since the Unix epoch";
    VIRTUAL = Gauge "process_virtual_memory_bytes" [] "virtual memory of the process";
    RESIDENT = Gauge "process_resident_memory_bytes" [] "resident memory of the process";
    OPEN = Gauge "process_open_fds" [] "open file descriptors";
    MOST = Gauge "process_max_fds" [] "file descriptors that may be open";
}

/// Writes the usual `process_*` families; what cannot be read is left out.
pub fn write(scrape: &mut Scrape) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold spaces; the first field there is number 3 (proc(5)).
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(number).collect();
    let field = |at: usize| fields.get(at - 3).copied();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    let boot = fs::read_to_string("/proc/stat").ok().and_then(|all| {
        let line = all.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(number(line))
    });
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.map(|line| number(line.trim_end_matches("kB").trim()) * 1_024.0);
    let open = fs::read_dir("/proc/self/fd").ok().and_then(|all| u32::try_from(all.count()).ok());
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let most = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    scrape.known(CPU, cpu);
    scrape.known(START, field(22).zip(boot).map(|(ticks, boot)| boot + ticks / TICKS));
    scrape.known(VIRTUAL, field(23));
    scrape.known(RESIDENT, resident);
    scrape.known(OPEN, open.map(f64::from));
    // "unlimited" is no number: then there is none to tell.
    scrape.known(
        MOST,
        most.and_then(|line| line.split_whitespace().next()).map(number).filter(|most| most.is_finite()),
    );
}

fn number(text: &str) -> f64 {
    text.trim().parse().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use crate::exposition::Scrape;

    #[test]
    fn the_usual_families_are_there_with_sensible_values() {
        let mut scrape = Scrape::new();
        super::write(&mut scrape);
        let text = scrape.end();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
            line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
        };
        assert!(value("resident_memory_bytes") > 1e5 && value("virtual_memory_bytes") > 1e6);
        assert!(value("open_fds") >= 3.0 && value("max_fds") >= 64.0);
        assert!(value("start_time_seconds") > 1.5e9 && value("cpu_seconds_total") >= 0.0);
    }
}
