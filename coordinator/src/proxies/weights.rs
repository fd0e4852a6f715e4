//! How much of the requests each replica should get. Pure.

use swarmguard_common::wire::routes::ReplicaLoad;

use super::Replica;

/// The least that a replica gets: it must be heard of, and its load can fall only if it is given some.
const LEAST: f64 = 10.0;
/// Differences of room up to this are noise: all get the same.
const NOISE: f64 = 0.10;

/// Gives each replica its weight: as much as it has room, against the one with most. Of whom nothing is known counts as the
/// mean of the others: unknown is neither idle nor busy.
pub fn weighted(replicas: Vec<(Replica, Option<ReplicaLoad>)>) -> Vec<Replica> {
    let room = |load: &ReplicaLoad| (1.0 - load.cpu.ratio().max(load.psi_cpu.ratio())).max(0.0);
    let rooms: Vec<Option<f64>> = replicas.iter().map(|(_, load)| load.as_ref().map(room)).collect();
    let known: Vec<f64> = rooms.iter().flatten().copied().collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of replicas")]
    let mean = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    let most = known.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let least = known.iter().copied().fold(most, f64::min);
    let alike = most - least <= NOISE;
    let weigh = |room: Option<f64>| {
        let share = if alike { 1.0 } else { room.unwrap_or(mean) / most };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 10 to 100")]
        let weight = (share * 100.0).clamp(LEAST, 100.0).round() as u8;
        weight
    };
    let all = replicas.into_iter().zip(rooms);
    all.map(|((replica, _), room)| Replica { weight: weigh(room), ..replica }).collect()
}

#[cfg(test)]
mod tests {
    use swarmguard_common::domain::BasisPoints;

    use super::*;

    fn weights(cpus: &[Option<u16>]) -> Vec<u8> {
        let replica = Replica {
            task: "t".parse().expect("an ID"),
            node: String::new(),
            node_address: None,
            addresses: Vec::new(),
            ready: true,
            draining: false,
            weight: 0,
        };
        let load = |percent: u16| ReplicaLoad {
            cpu: BasisPoints(percent * 100),
            memory: BasisPoints::ZERO,
            network: BasisPoints::ZERO,
            psi_cpu: BasisPoints::ZERO,
            in_flight: None,
            latency_us: None,
            age_ms: 0,
        };
        let all = cpus.iter().map(|cpu| (replica.clone(), cpu.map(load))).collect();
        weighted(all).iter().map(|replica| replica.weight).collect()
    }

    #[test]
    fn who_has_room_gets_more_and_nobody_gets_nothing() {
        assert_eq!(weights(&[Some(92), Some(20), Some(60)]), [10, 100, 50]);
        assert_eq!(weights(&[Some(30), Some(38), Some(33)]), [100, 100, 100], "noise is no reason");
        assert_eq!(weights(&[Some(100), Some(100)]), [100, 100]);
        assert_eq!(weights(&[Some(80), None, Some(20)]), [25, 63, 100], "unknown is the mean");
        assert_eq!(weights(&[None, None]), [100, 100]);
        assert_eq!(weights(&[]), [0_u8; 0]);
    }
}
