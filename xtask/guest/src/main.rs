//! The cluster nodes' own program, linked statically: PID 1 of a VM (`/init`), PID 1 of a native node
//! (`native`), and the command agent of both (`agent`). One binary, so that every node kind behaves the same;
//! Rust instead of a shell, because fork and exec cost 35 times as much in an emulated guest.

mod agent;
mod engine;
mod init;
mod mounts;
mod native;
mod net;
mod sys;

use std::process::ExitCode;

use swarmguard_guest::FAILED;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mode =
        if std::process::id() == 1 && std::env::args().next().is_some_and(|name| name.ends_with("init")) {
            "init".to_owned()
        } else if arguments.is_empty() {
            String::new()
        } else {
            arguments.remove(0)
        };
    let result = match (mode.as_str(), arguments.as_slice()) {
        ("init", _) => init::run(),
        ("agent", [address]) => agent::serve(address),
        ("native", settings) => native::run(settings),
        _ => Err("usage: swarmguard-guest agent ADDRESS | native KEY=VALUE…, or as /init of a VM".to_owned()),
    };
    if let Err(error) = result {
        eprintln!("{FAILED} {error}");
        if mode == "init" {
            sys::power_off();
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
