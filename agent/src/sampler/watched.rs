//! One watched container: its open files, and what of it is due at a pass.

use std::time::Duration;

use swarmguard_common::{
    kernel::{GroupSample, HAS_CPU, HAS_PRESSURE},
    time::Time,
};

use crate::{
    pace::IDLE_INTERVAL,
    sources::{
        group::{Gone, Group, SlowReading},
        limits::LimitSource,
        network::{NetworkReading, Networks, Tap},
        pressure::Pressure,
    },
    state::Agent,
};

/// `memory.stat` and pressure are read this often, and this often while a container is hot.
const SLOW_INTERVAL: Duration = Duration::from_secs(1);
const SLOW_INTERVAL_HOT: Duration = Duration::from_millis(250);

/// Limits are read anew this often; `docker update` changes them.
const LIMITS_INTERVAL: Duration = Duration::from_secs(10);

/// Limits and files of a container this young are looked at anew with every slow reading: an engine makes the cgroup
/// first and sets it up afterwards.
pub(super) const YOUNG: Duration = Duration::from_secs(5);

/// One container's open files, and when what of them was read.
pub(super) struct Watched {
    pub(super) handle: u32,
    pub(super) group: Group,
    pub(super) tap: Tap,
    pub(super) since: Time,
    /// Where the kernel's pass handed it over last.
    pub(super) place: usize,
    /// A condition stands or may soon, as of the last pass.
    pub(super) hot: bool,
    slow_at: Option<Time>,
    limits_at: Time,
    /// A slow reading that lacks what the next pass brings.
    begun: Option<(Time, SlowReading)>,
    /// CPU time and network as they were read last, and when the network was.
    seen: Option<(u64, Time, NetworkReading)>,
    /// Nothing came or went between the last two readings of the network.
    silent: bool,
}

/// What is read from.
pub(super) struct Sources<'a> {
    pub(super) networks: &'a mut Networks,
    pub(super) limits: &'a mut LimitSource,
    pub(super) buffer: &'a mut [u8],
}

impl Watched {
    pub(super) fn new(handle: u32, group: Group, tap: Tap, now: Time) -> Self {
        Self {
            handle,
            group,
            tap,
            since: now,
            place: 0,
            hot: false,
            slow_at: None,
            limits_at: now,
            begun: None,
            seen: None,
            silent: false,
        }
    }

    /// Has the next pass read what is slow, too.
    pub(super) fn hurry(&mut self) {
        self.slow_at = None;
    }

    /// Whether what moves slowly is due.
    fn slow_due(&self, now: Time) -> bool {
        let interval = if self.hot { SLOW_INTERVAL_HOT } else { SLOW_INTERVAL };
        self.slow_at.is_none_or(|at| now.since(at) >= interval)
    }

    /// Reads what is due at a pass, which handed over `sample` if it did, and hands it to the state.
    pub(super) fn sample(
        &mut self,
        now: Time,
        sample: Option<&GroupSample>,
        agent: &mut Agent,
        from: &mut Sources<'_>,
    ) -> Result<(), Gone> {
        if let Some(sample) = sample {
            self.finish_slow(sample, agent);
        }
        if self.slow_due(now) {
            self.slow(now, sample, agent, from)?;
        }
        let reading = match sample {
            Some(sample) => self.group.from_pass(sample, from.buffer)?,
            None => self.group.read_fast(from.buffer)?,
        };
        let network = self.network(now, sample, from);
        self.hot = agent.sample(now, self.handle, reading, network);
        Ok(())
    }

    /// Reads what moves slowly, and the limits when those are due.
    ///
    /// Reading any one pressure file makes the kernel sum up all three, and its next pass hands the sums over: so where
    /// there are passes one file is read instead of three, and the figures come with the next pass.
    fn slow(
        &mut self,
        now: Time,
        sample: Option<&GroupSample>,
        agent: &mut Agent,
        from: &mut Sources<'_>,
    ) -> Result<(), Gone> {
        let handed = sample.is_some_and(|sample| sample.fields & HAS_PRESSURE != 0);
        let mut reading = self.group.read_slow(!handed, from.buffer)?;
        reading.run_queue = from.networks.programs().and_then(|programs| programs.run_queue(self.group.id()));
        if handed && reading.psi_cpu.is_some() {
            self.begun = Some((now, reading));
        } else {
            agent.sample_slow(now, self.handle, reading);
        }
        // The first ones of many are spread over the interval, so that not all fall into one tick.
        let first = self.slow_at.is_none();
        let spread = Duration::from_millis(u64::from(self.handle % 10) * 100);
        self.slow_at = Some(if first { now.before(spread) } else { now });
        self.look_at_limits(now, agent, from.limits);
        Ok(())
    }

    /// Ends a slow reading that waited for a pass.
    fn finish_slow(&mut self, sample: &GroupSample, agent: &mut Agent) {
        if sample.fields & HAS_PRESSURE == 0 {
            return;
        }
        let Some((at, reading)) = self.begun.take() else { return };
        let [io_some, io_full, memory_some, memory_full, _, _] = sample.pressure_ns;
        let pressure = |some_ns: u64, full_ns: u64| {
            Some(Pressure { some_usec: some_ns / 1_000, full_usec: Some(full_ns / 1_000) })
        };
        let reading = SlowReading {
            psi_memory: pressure(memory_some, memory_full),
            psi_io: pressure(io_some, io_full),
            ..reading
        };
        agent.sample_slow(at, self.handle, reading);
    }

    fn look_at_limits(&mut self, now: Time, agent: &mut Agent, limits: &mut LimitSource) {
        let young = now.since(self.since) < YOUNG;
        if !young && now.since(self.limits_at) < LIMITS_INTERVAL {
            return;
        }
        self.limits_at = now;
        if young
            && self.group.missing().next().is_some()
            && let Ok(group) = Group::open(self.group.dir())
        {
            self.group = group;
        }
        if let Some(handle) = agent.limit(self.handle, limits.read(now, self.group.dir())) {
            self.handle = handle;
        }
    }

    /// The network now. That of a container in which nothing ran since it was last silent is not read anew, for up to
    /// [`IDLE_INTERVAL`]: it cannot have sent anything, and what it receives without looking is seen soon enough.
    fn network(
        &mut self,
        now: Time,
        sample: Option<&GroupSample>,
        from: &mut Sources<'_>,
    ) -> Option<NetworkReading> {
        let cpu_ns = sample.filter(|sample| sample.fields & HAS_CPU != 0).map(|sample| sample.cpu_ns);
        if let (Some(cpu_ns), Some((last_ns, at, reading))) = (cpu_ns, &self.seen)
            && self.silent
            && cpu_ns == *last_ns
            && now.since(*at) < IDLE_INTERVAL
        {
            return Some(NetworkReading { unread: true, ..*reading });
        }
        let reading = from.networks.read(&self.tap, from.buffer)?;
        self.silent = self.seen.is_some_and(|(_, _, before)| before.traffic == reading.traffic);
        self.seen = Some((cpu_ns.unwrap_or(0), now, reading));
        Some(reading)
    }
}
