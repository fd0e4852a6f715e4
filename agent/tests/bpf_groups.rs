//! What the tracing programs say against what the kernel's files say.

mod kernel;

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use kernel::{DEADLINE, Group, Process};
use swarmguard_agent::bpf::{EventSource, GroupEvent, Options, Programs};
use swarmguard_common::kernel::{GroupSample, HAS_CPU, HAS_MEMORY, HAS_PRESSURE, HAS_THROTTLING};
use swarmguard_runtime::clock;

fn load(test: &str) -> Option<(Programs, std::path::PathBuf)> {
    let (facts, root) = kernel::facts_or_skip(test)?;
    let programs =
        Programs::load(&root, &facts, Options::default()).expect("this kernel takes some programs");
    for finding in programs.findings() {
        println!("{}: {} ({})", finding.what, finding.ok, finding.detail);
    }
    if facts.btf && facts.version >= (6, 1) {
        for finding in programs.findings() {
            assert!(finding.ok, "from 6.1 on everything loads: {finding:?}");
        }
    }
    Some((programs, root))
}

/// Uses a CPU for some time, in steps that end soon after the deadline on any machine.
fn burn(time: Duration) -> std::io::Result<()> {
    let start = clock::now();
    while clock::now().since(start) < time {
        std::hint::black_box((0..20_000u64).fold(0, |sum, more| std::hint::black_box(sum) ^ more));
    }
    Ok(())
}

/// Uses this much CPU time, however long the machine takes to give it.
fn use_cpu(time: Duration) -> std::io::Result<()> {
    let used = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0))
    };
    let until = used() + time;
    while used() < until {
        std::hint::black_box((0..20_000u64).fold(0, |sum, more| std::hint::black_box(sum) ^ more));
    }
    Ok(())
}

fn entry(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// `total=` of the line of a pressure file that begins so, in ns.
fn pressure(file: &Path, line: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|found| found.starts_with(line))?;
    Some(line.rsplit_once("total=")?.1.trim().parse::<u64>().ok()? * 1000)
}

fn sample_of(programs: &mut Programs, id: u64) -> Option<GroupSample> {
    let mut found = None;
    let works = programs.sample(&mut |sample| {
        if sample.cgroup_id == id {
            assert!(found.is_none(), "one sample for each container");
            found = Some(*sample);
        }
    });
    assert!(works.expect("the pass is read to its end"));
    found
}

#[test]
fn a_pass_agrees_with_the_files() {
    let test = "a_pass_agrees_with_the_files";
    let Some((mut programs, root)) = load(test) else { return };
    if !programs.has_pass() {
        kernel::skip(test, "no iterator here");
        return;
    }
    let groups = Group::new(&root);
    let (busy, idle, stranger) = (groups.child("busy"), groups.child("idle"), groups.child("stranger"));
    let nested = groups.child("busy/inner");
    programs.watch(kernel::id(&busy), &busy).expect("a fresh cgroup");
    programs.watch(kernel::id(&idle), &idle).expect("a fresh cgroup");

    // Two tasks, in cgroups within the container, that compete where there is but one CPU.
    let burners: Vec<Process> =
        (0..2).map(|_| Process::spawn(&nested, None, || use_cpu(Duration::from_millis(300)))).collect();
    let mut last = 0;
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(50));
        let before = entry(&busy.join("cpu.stat"), "usage_usec ").expect("a figure");
        let sample = sample_of(&mut programs, kernel::id(&busy)).expect("a watched container");
        let after = entry(&busy.join("cpu.stat"), "usage_usec ").expect("a figure");
        assert_ne!(sample.fields & HAS_CPU, 0);
        let used = sample.cpu_ns / 1000;
        assert!(before <= used && used <= after, "{before} <= {used} <= {after} us while it runs");
        assert!(sample.cpu_ns >= last, "a counter ran backwards");
        last = sample.cpu_ns;
    }
    burners.into_iter().for_each(Process::finish);

    // At rest everything is equal.
    let used = entry(&busy.join("cpu.stat"), "usage_usec ").expect("a figure");
    let stalled: Vec<Option<u64>> = [
        ("io", "some"),
        ("io", "full"),
        ("memory", "some"),
        ("memory", "full"),
        ("cpu", "some"),
        ("cpu", "full"),
    ]
    .iter()
    .map(|(what, line)| pressure(&busy.join(format!("{what}.pressure")), line))
    .collect();
    let sample = sample_of(&mut programs, kernel::id(&busy)).expect("a watched container");
    assert_eq!(sample.cpu_ns / 1000, used);
    assert!(used >= 588_000, "two tasks that used 300 ms each used {used} us");
    if stalled.iter().all(Option::is_some) {
        assert_ne!(sample.fields & HAS_PRESSURE, 0);
        for (got, file) in sample.pressure_ns.iter().zip(&stalled) {
            let file = file.expect("checked");
            assert!(got.abs_diff(file) < 1000, "{:?} against {stalled:?}", sample.pressure_ns);
        }
    }
    match fs::read_to_string(busy.join("memory.current")) {
        Ok(text) => {
            assert_ne!(sample.fields & HAS_MEMORY, 0);
            let now: u64 = text.trim().parse().expect("a number");
            // Pages on their way back to the free list are counted off in batches.
            assert!(sample.memory_bytes.abs_diff(now) <= 1 << 20, "{} against {now}", sample.memory_bytes);
        }
        Err(_) => assert_eq!(sample.fields & HAS_MEMORY, 0, "no controller, no figure"),
    }
    assert_eq!(sample_of(&mut programs, kernel::id(&idle)).map(|sample| sample.cpu_ns), Some(0));
    assert_eq!(sample_of(&mut programs, kernel::id(&stranger)), None, "not watched");
    programs.forget(kernel::id(&busy));
    assert_eq!(sample_of(&mut programs, kernel::id(&busy)), None, "forgotten");
}

#[test]
fn throttling_agrees_with_the_file() {
    let test = "throttling_agrees_with_the_file";
    let Some((mut programs, root)) = load(test) else { return };
    let groups = Group::new(&root);
    let capped = groups.child("capped");
    if !programs.has_pass() || fs::write(capped.join("cpu.max"), "20000 100000").is_err() {
        kernel::skip(test, "no iterator, or the cpu controller is not of version 2 here");
        return;
    }
    programs.watch(kernel::id(&capped), &capped).expect("a fresh cgroup");
    Process::spawn(&capped, None, || use_cpu(Duration::from_millis(150))).finish();
    let stat = capped.join("cpu.stat");
    let sample = sample_of(&mut programs, kernel::id(&capped)).expect("a watched container");
    println!("{sample:?}\n{}", fs::read_to_string(&stat).unwrap_or_default());
    assert_ne!(sample.fields & HAS_THROTTLING, 0);
    assert!(sample.throttled > 0, "a fifth of a CPU for one who wants a whole");
    assert_eq!(Some(sample.periods), entry(&stat, "nr_periods "));
    assert_eq!(Some(sample.throttled), entry(&stat, "nr_throttled "));
    assert_eq!(Some(sample.throttled_ns / 1000), entry(&stat, "throttled_usec "));
}

/// Memory to run out of: a limit on the container, or, where memory is of version 1, on a group beside it.
fn limit_memory(container: &Path) -> Option<(Option<Group>, std::path::PathBuf)> {
    const LIMIT: &str = "33554432";
    let _ = fs::write(container.join("memory.swap.max"), "0");
    if fs::write(container.join("memory.max"), LIMIT).is_ok() {
        return Some((None, container.to_owned()));
    }
    let beside = Path::new("/sys/fs/cgroup/memory");
    if !beside.join("memory.limit_in_bytes").exists() {
        return None;
    }
    let group = Group::new(beside);
    fs::write(group.path.join("memory.limit_in_bytes"), LIMIT).ok()?;
    let _ = fs::write(group.path.join("memory.memsw.limit_in_bytes"), LIMIT);
    let path = group.path.clone();
    Some((Some(group), path))
}

#[test]
fn who_is_killed_for_lack_of_memory_is_told() {
    let test = "who_is_killed_for_lack_of_memory_is_told";
    let Some((mut programs, root)) = load(test) else { return };
    let groups = Group::new(&root);
    let greedy = groups.child("greedy");
    let (Some(mut events), Some((_group, limited))) = (programs.events(), limit_memory(&greedy)) else {
        kernel::skip(test, "no such program, or no memory controller at all");
        return;
    };
    let victim = Process::spawn(&greedy, None, || {
        fs::write(limited.join("cgroup.procs"), "0")?;
        let mut all = Vec::new();
        for _ in 0..256 {
            all.push(vec![1u8; 1 << 20]);
            std::hint::black_box(&mut all);
        }
        Ok(())
    });
    let pid = victim.pid();
    let status = victim.end();
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
        "it ended with {status:#x}"
    );
    loop {
        match next(&mut events).expect("the kill is told") {
            GroupEvent::OutOfMemory { cgroup_id, pid: told, .. } if told == pid => {
                assert_eq!(cgroup_id, kernel::id(&greedy));
                return;
            }
            _ => {}
        }
    }
}

/// Every counter there is, read as fast as possible while processes come, work on all CPUs, send, and end.
#[test]
fn counters_never_run_backwards() {
    const LASTS: Duration = Duration::from_secs(3);
    let test = "counters_never_run_backwards";
    if !kernel::ip_or_skip(test) {
        return;
    }
    let Some((mut programs, root)) = load(test) else { return };
    let wire = kernel::Wire::new();
    let groups = Group::new(&root);
    let busy = groups.child("busy");
    let id = kernel::id(&busy);
    programs.watch(id, &busy).expect("a fresh cgroup");
    // Moved between two CPUs' counters by being short, many, and free to go where they like.
    let work = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..20 {
            socket.send_to(&[0; 512], "10.99.0.2:9")?;
            use_cpu(Duration::from_millis(2))?;
        }
        Ok(())
    };
    let all = |programs: &mut Programs| {
        let mut all = Vec::new();
        if let Some(it) = sample_of(programs, id) {
            all.extend([it.cpu_ns, it.periods, it.throttled, it.throttled_ns]);
            all.extend(it.pressure_ns);
        }
        let it = programs.counters(id).expect("watched");
        all.extend([it.net.rx_bytes, it.net.rx_packets, it.net.tx_bytes, it.net.tx_packets]);
        if let Some(it) = programs.run_queue(id) {
            all.extend([it.count, it.total_ns]);
            all.extend(it.slots.map(u64::from));
        }
        all
    };
    let (start, mut reads, mut last) = (clock::now(), 0, all(&mut programs));
    let first = last.clone();
    while clock::now().since(start) < LASTS {
        let workers: Vec<Process> = (0..3).map(|_| Process::spawn(&busy, Some(&wire.a), work)).collect();
        for _ in 0..50 {
            let now = all(&mut programs);
            assert_eq!(now.len(), last.len());
            assert!(now.iter().zip(&last).all(|(now, last)| now >= last), "{now:?} after {last:?}");
            last = now;
            reads += 1;
        }
        workers.into_iter().for_each(Process::finish);
    }
    println!("{reads} reads of {} counters: {last:?}", last.len());
    assert!(last.iter().zip(&first).any(|(now, first)| now > first), "nothing was counted");
}

/// More than the 315 that an iterator's own output has room for.
#[test]
fn a_pass_hands_over_every_container_once() {
    let test = "a_pass_hands_over_every_container_once";
    let Some((mut programs, root)) = load(test) else { return };
    if !programs.has_pass() {
        kernel::skip(test, "no iterator here");
        return;
    }
    let groups = Group::new(&root);
    let mut wanted: Vec<u64> = (0..700)
        .map(|number| {
            let path = groups.child(&format!("c{number}"));
            programs.watch(kernel::id(&path), &path).expect("a fresh cgroup");
            kernel::id(&path)
        })
        .collect();
    let mut got = Vec::new();
    programs.sample(&mut |sample| got.push(sample.cgroup_id)).expect("a whole pass");
    wanted.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, wanted);
}

#[test]
fn waiting_for_a_cpu_shows_in_the_run_queue() {
    let test = "waiting_for_a_cpu_shows_in_the_run_queue";
    let Some((mut programs, root)) = load(test) else { return };
    let groups = Group::new(&root);
    let (crowd, calm) = (groups.child("crowd"), groups.child("calm"));
    programs.watch(kernel::id(&crowd), &crowd).expect("a fresh cgroup");
    programs.watch(kernel::id(&calm), &calm).expect("a fresh cgroup");
    if programs.run_queue(kernel::id(&crowd)).is_none() {
        kernel::skip(test, "no such program here");
        return;
    }
    // Three busy tasks on one CPU: two of them always wait.
    let pinned = || {
        let mut one = rustix::thread::CpuSet::new();
        one.set(0);
        rustix::thread::sched_setaffinity(None, &one)?;
        burn(Duration::from_millis(900))
    };
    let tasks: Vec<Process> = (0..3).map(|_| Process::spawn(&crowd, None, pinned)).collect();
    let calm_task = Process::spawn(&calm, None, || {
        (0..20).for_each(|_| thread::sleep(Duration::from_millis(10)));
        Ok(())
    });
    calm_task.finish();
    tasks.into_iter().for_each(Process::finish);
    let crowded = programs.run_queue(kernel::id(&crowd)).expect("watched");
    let calm = programs.run_queue(kernel::id(&calm)).expect("watched");
    println!("crowd {crowded:?}\ncalm {calm:?}");
    // 2/3 of 900 ms each for three tasks, if nothing else wants that CPU; more where something does.
    assert!(crowded.total_ns > 1_200_000_000, "{crowded:?}");
    assert_eq!(crowded.slots.iter().map(|count| u64::from(*count)).sum::<u64>(), crowded.count);
    assert!(calm.count >= 20, "it slept twenty times: {calm:?}");
    // It wants a CPU for a thousandth of the time, however long it then has to wait for one.
    assert!(calm.total_ns < crowded.total_ns / 2, "{calm:?} {crowded:?}");
}

fn next(events: &mut EventSource) -> Option<GroupEvent> {
    let start = clock::now();
    loop {
        if let Some(event) = events.next_event() {
            return Some(event);
        }
        let left = DEADLINE.checked_sub(clock::now().since(start))?;
        let timeout = rustix::event::Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: 0 };
        let fd = events.as_fd();
        rustix::event::poll(
            &mut [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)],
            Some(&timeout),
        )
        .expect("the ring can be waited for");
    }
}

/// A thousand in a row, each told once, in order, with its path; none lost.
#[test]
fn every_birth_and_death_is_told() {
    let test = "every_birth_and_death_is_told";
    let Some((mut programs, root)) = load(test) else { return };
    let Some(mut events) = programs.events() else {
        kernel::skip(test, "no such program here");
        return;
    };
    let groups = Group::new(&root);
    let base = format!("/{}", groups.path.strip_prefix(&root).expect("below").display());
    let mut told = Vec::new();
    let mut expected = Vec::new();
    for number in 0..1000 {
        let path = groups.child(&format!("docker-{number:064x}.scope"));
        let id = kernel::id(&path);
        let name = format!("{base}/docker-{number:064x}.scope");
        fs::remove_dir(&path).expect("an empty cgroup");
        expected.push((true, id, name.clone()));
        expected.push((false, id, name));
        while told.len() < expected.len() {
            let Some(event) = next(&mut events) else {
                panic!("waited in vain; told {told:?}, made {expected:?}")
            };
            match event {
                GroupEvent::Birth { cgroup_id, path, .. } if path.starts_with(&format!("{base}/")) => {
                    told.push((true, cgroup_id, path));
                }
                GroupEvent::Death { cgroup_id, path, .. } if path.starts_with(&format!("{base}/")) => {
                    told.push((false, cgroup_id, path));
                }
                // Other tests make cgroups too.
                _ => {}
            }
        }
    }
    assert_eq!(told, expected);
    assert_eq!(events.lost(), 0);
}
