//! What the kernel says about this process, for `/metrics`.

use std::{fmt::Write as _, fs};

/// Ticks of the kernel's CPU accounting a second, the same on every Linux that runs containers.
const TICKS: f64 = 100.0;

/// Appends the usual `process_*` families; what cannot be read is left out.
pub fn write(text: &mut String) {
    let mut family = |name: &str, kind: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(text, "# TYPE process_{name} {kind}\nprocess_{name} {value}");
        }
    };
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
    family("cpu_seconds_total", "counter", cpu);
    family("start_time_seconds", "gauge", field(22).zip(boot).map(|(ticks, boot)| boot + ticks / TICKS));
    family("virtual_memory_bytes", "gauge", field(23));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.map(|line| number(line.trim_end_matches("kB").trim()) * 1_024.0);
    family("resident_memory_bytes", "gauge", resident);
    let open = fs::read_dir("/proc/self/fd").ok().and_then(|all| u32::try_from(all.count()).ok());
    family("open_fds", "gauge", open.map(f64::from));
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let most = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    family("max_fds", "gauge", most.and_then(|line| line.split_whitespace().next()).map(number));
}

fn number(text: &str) -> f64 {
    text.trim().parse().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_usual_families_are_there_with_sensible_values() {
        let mut text = String::new();
        super::write(&mut text);
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
            line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
        };
        assert!(value("resident_memory_bytes") > 1e5 && value("virtual_memory_bytes") > 1e6);
        assert!(value("open_fds") >= 3.0 && value("max_fds") >= 64.0);
        assert!(value("start_time_seconds") > 1.5e9 && value("cpu_seconds_total") >= 0.0);
    }
}
