//! Which node takes one more replica: the one with most room among those that Swarm would place it on and whose figures may
//! be believed.

use swarmguard_common::{domain::NodeId, labels::ServicePolicy};

use super::{
    Round,
    burden::Burden,
    constant,
    hot::share,
    placement::{self, Needs},
};
use crate::{
    swarm::{Node, Service},
    view::{OnNode, agent::Agent},
};

/// A node that could take a replica, and how busy it would be then.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Which node.
    pub node: NodeId,
    /// Its CPU now, 1.0 being all, with what is on its way there.
    pub cpu: f64,
    /// Its CPU with the replica's use added.
    pub predicted_cpu: f64,
    /// Its memory now, likewise.
    pub memory: f64,
    /// Its memory with the replica's use added.
    pub predicted_memory: f64,
}

/// Obstacles that are told node by node; of more only how many there are.
const MOST_OBSTACLES: usize = 20;

/// What a round knows of a node before it knows for which service: found once, asked for every service that is hot.
#[derive(Debug)]
pub(super) struct Room<'a> {
    node: &'a Node,
    on: Option<&'a OnNode>,
    /// CPU and memory in use, 1.0 being all, and how much all is; or why it takes nothing.
    use_of: Result<(f64, f64, &'a Agent), &'static str>,
}

impl<'a> Room<'a> {
    fn of(round: &Round<'a>, node: &'a Node) -> Self {
        let on = round.view.placed().on(&node.id);
        Self { node, on, use_of: Self::use_of(round, node) }
    }

    fn use_of(round: &Round<'a>, node: &'a Node) -> Result<(f64, f64, &'a Agent), &'static str> {
        if let Some(why) = placement::unbelievable(round.view, &node.id, round.now) {
            return Err(why);
        }
        if let Some((_, ended)) = round.view.history.last_move(&node.id)
            && round.now - ended < constant::RELIEF
        {
            return Err("a replica moved there or away a moment ago");
        }
        let agent = round.view.agents.get(&node.id).ok_or("no agent was heard there")?;
        match (agent.cpu.ratio(), agent.memory.ratio()) {
            (Some(cpu), Some(memory)) => Ok((cpu, memory, agent)),
            _ => Err("its figures are unknown"),
        }
    }
}

/// The node with most room among those that Swarm would place the service on and whose figures may be believed; or
/// why there is none, node by node.
pub(super) fn best_target(
    round: &Round<'_>,
    service: &Service,
    burden: Burden,
    fits: impl Fn(&Target) -> Result<(), String>,
) -> Result<Target, String> {
    let needs = Needs::of(service);
    let mut best: Option<(Target, &Room<'_>)> = None;
    let (mut obstacles, mut more) = (Vec::new(), 0_usize);
    let rooms =
        round.rooms.get_or_init(|| round.snapshot.nodes.values().map(|node| Room::of(round, node)).collect());
    for room in rooms {
        match candidate(round, &needs, room, burden).and_then(|target| fits(&target).map(|()| target)) {
            Err(_) if obstacles.len() >= MOST_OBSTACLES => more += 1,
            Err(why) => obstacles.push(format!("{}: {why}", room.node.hostname)),
            Ok(target) => {
                let own = |room: &Room<'_>| room.on.map_or(0, |on| on.replicas(&service.id));
                let tasks = |room: &Room<'_>| room.on.map_or(0, |on| on.tasks);
                // Swarm evens out spread preferences before anything else.
                let spread = |room: &Room<'_>| {
                    placement::spread(round.snapshot, round.view.placed(), service, room.node)
                };
                let better = best.as_ref().is_none_or(|(old, old_room)| {
                    let order = target.predicted_cpu.total_cmp(&old.predicted_cpu);
                    let fewer =
                        || own(room).cmp(&own(old_room)).then_with(|| tasks(room).cmp(&tasks(old_room)));
                    let branches = spread(room).cmp(&spread(old_room));
                    branches.then(order).then_with(fewer).is_lt()
                });
                if better {
                    best = Some((target, room));
                }
            }
        }
    }
    best.map(|(target, _)| target).ok_or_else(|| {
        if more > 0 {
            obstacles.push(format!("and {more} more nodes"));
        }
        obstacles.join("; ")
    })
}

fn candidate(
    round: &Round<'_>,
    needs: &Needs<'_>,
    room: &Room<'_>,
    burden: Burden,
) -> Result<Target, String> {
    let node = room.node;
    if let Some(obstacle) = needs.obstacle(node, room.on) {
        return Err(obstacle);
    }
    let (cpu, memory, agent) = room.use_of?;
    if round.situation.leaving.contains_key(&node.id) {
        return Err("an action leaves it".into());
    }
    // What other actions bring may not show in its figures yet.
    let mut coming = Burden::default();
    for arrival in round.situation.arriving.get(&node.id).into_iter().flatten() {
        let other = round.brought_by(arrival).ok_or("a replica whose use is unknown is on its way there")?;
        coming.cpu_millis += other.cpu_millis;
        coming.memory_bytes += other.memory_bytes;
    }
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let whole_memory = agent.hello.memory_bytes as f64;
    let cpu_share = |burden: Burden| share(burden.cpu_millis, f64::from(agent.hello.cpu_millis));
    let memory_share = |burden: Burden| share(burden.memory_bytes, whole_memory);
    let cpu = cpu + cpu_share(coming);
    Ok(Target {
        node: node.id.clone(),
        cpu,
        predicted_cpu: cpu + cpu_share(burden),
        memory: memory + memory_share(coming),
        predicted_memory: memory + memory_share(coming) + memory_share(burden),
    })
}

/// Whether a node has room for what comes; or why not.
pub(super) fn has_room(policy: &ServicePolicy, target: &Target) -> Result<(), String> {
    if target.predicted_cpu > constant::CPU_ROOM {
        return Err(format!("CPU would be at {:.0} %", target.predicted_cpu * 100.0));
    }
    memory_fits(policy, target)
}

/// What a node's memory may come to with one more replica; or why it may not.
pub(super) fn memory_fits(policy: &ServicePolicy, target: &Target) -> Result<(), String> {
    if target.predicted_memory > policy.thresholds.memory_high.ratio().max(constant::MEMORY_ROOM) {
        return Err(format!("memory would be at {:.0} %", target.predicted_memory * 100.0));
    }
    Ok(())
}

/// What a node uses of its CPU and its memory, where 1.0 is all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    pub cpu: f64,
    pub memory: f64,
}

/// By how much a move lowers the larger of the two nodes' uses: of CPU, or of memory where that is what the source is
/// short of. `own` is the replica's part of the source.
pub(super) fn gain(source: Use, own: Use, target: &Target, by_memory: bool) -> f64 {
    if by_memory {
        source.memory - (source.memory - own.memory).max(target.predicted_memory)
    } else {
        source.cpu - (source.cpu - own.cpu).max(target.predicted_cpu)
    }
}
