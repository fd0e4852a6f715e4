//! What is known of a swarm from events and readings: tests.

use std::net::IpAddr;

use serde_json::json;
use swarmguard_common::labels::ServicePolicy;

use super::*;

const START: Time = Time::from_millis(1_000_000);

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("an ID")
}

fn at(seconds: u64) -> Time {
    START + Duration::from_secs(seconds)
}

fn node(name: &str, leader: bool) -> Node {
    Node {
        id: id(name),
        version: 1,
        hostname: name.into(),
        manager: leader,
        leader,
        ready: true,
        unknown: false,
        availability: Availability::Active,
        labels: BTreeMap::new(),
        engine_labels: BTreeMap::new(),
        engine_version: "20.10.24".into(),
        os: "linux".into(),
        architecture: "x86_64".into(),
        address: None,
        generic: Default::default(),
        plugins: Default::default(),
        nano_cpus: 1,
        memory_bytes: 1,
        spec: json!({}),
    }
}

fn service(name: &str, replicas: u64) -> Service {
    Service {
        id: id(name),
        version: 1,
        name: name.into(),
        mode: Mode::Replicated(replicas),
        policy: ServicePolicy::from_labels([("swarmguard.enable", "true")]),
        spec: json!({}),
        previous_spec: None,
        update_state: None,
        job_iteration: None,
        virtual_addresses: vec![],
    }
}

fn task(name: &str, service: &str, node: &str) -> Task {
    Task {
        id: id(name),
        service: id(service),
        slot: 1,
        node: node.parse().ok(),
        desired: TaskState::Running,
        state: TaskState::Running,
        container: None,
        addresses: Vec::<IpAddr>::new(),
        attachments: vec![],
        message: String::new(),
        job_iteration: None,
    }
}

/// Two nodes, services a and b with one replica each; read in full at second 0.
fn settled() -> Known {
    let mut known = Known::default();
    let plan = known.plan(at(0), &Marks::default(), &BTreeSet::new(), true);
    assert!(plan.full && plan.tasks == Pick::All && plan.records);
    let read = Read {
        nodes: vec![node("n1", true), node("n2", false)],
        services: vec![service("a", 1), service("b", 1)],
        tasks: vec![task("ta", "a", "n1"), task("tb", "b", "n2")],
        ..Read::default()
    };
    assert_eq!(known.take(at(0), &plan, read), Vec::<TaskId>::new());
    known
}

fn plan(known: &mut Known, second: u64, marks: &Marks) -> Plan {
    known.plan(at(second), marks, &BTreeSet::new(), true)
}

fn tasks(known: &Known) -> Vec<String> {
    let snapshot = known.snapshot(at(0), id("n1"));
    snapshot.tasks.keys().map(ToString::to_string).collect()
}

#[test]
fn at_rest_only_the_leader_is_asked_and_everything_now_and_then() {
    let mut known = settled();
    for second in [2, 4, 29] {
        let plan = plan(&mut known, second, &Marks::default());
        let leader = Plan {
            full: false,
            nodes: Pick::Only(vec![id("n1")]),
            services: Pick::Nothing,
            records: false,
            tasks: Pick::Nothing,
            past: vec![],
            by_id: vec![],
        };
        assert_eq!(plan, leader, "second {second}");
        known.take(at(second), &plan, Read { nodes: vec![node("n1", true)], ..Read::default() });
    }
    assert!(!known.is_busy(at(29)));
    assert!(plan(&mut known, 30, &Marks::default()).full);
    assert!(known.plan(at(2), &Marks::default(), &BTreeSet::new(), false).full, "without events");
    assert!(plan(&mut known, 2, &Marks { all: true, ..Marks::default() }).full);
}

#[test]
fn a_changed_service_is_read_and_its_tasks_are_followed_for_a_while() {
    let mut known = settled();
    let first = plan(&mut known, 2, &Marks { services: [id("a")].into(), ..Marks::default() });
    assert_eq!((&first.services, &first.tasks), (&Pick::Only(vec![id("a")]), &Pick::Only(vec![id("a")])));
    let mut changed = service("a", 2);
    changed.version = 2;
    let two = vec![task("ta", "a", "n1"), task("ta2", "a", "n2")];
    known.take(at(2), &first, Read { services: vec![changed], tasks: two.clone(), ..Read::default() });
    assert_eq!(tasks(&known), ["ta", "ta2", "tb"]);
    assert!(known.is_busy(at(2)));
    let later = plan(&mut known, 16, &Marks::default());
    assert_eq!((&later.services, &later.tasks), (&Pick::Nothing, &Pick::Only(vec![id("a")])));
    known.take(at(16), &later, Read { tasks: two, ..Read::default() });
    assert_eq!(plan(&mut known, 18, &Marks::default()).tasks, Pick::Nothing, "nothing happened for 15 s");
}

#[test]
fn a_task_that_swarm_wants_no_more_is_read_by_its_id_until_it_has_ended() {
    let mut known = settled();
    let marks = Marks { tasks_of: [id("a")].into(), ..Marks::default() };
    let first = plan(&mut known, 2, &marks);
    let left = known.take(at(2), &first, Read { tasks: vec![task("ta2", "a", "n2")], ..Read::default() });
    assert_eq!(left, [id("ta")]);
    let mut stopping = task("ta", "a", "n1");
    stopping.desired = TaskState::Shutdown;
    known.take_by_id(at(2), &left, vec![stopping]);
    assert_eq!(tasks(&known), ["ta", "ta2", "tb"], "it still runs");
    let next = plan(&mut known, 3, &Marks::default());
    let left = known.take(at(3), &next, Read { tasks: vec![task("ta2", "a", "n2")], ..Read::default() });
    assert_eq!(left, [id("ta")]);
    known.take_by_id(at(3), &left, vec![]);
    assert_eq!(tasks(&known), ["ta2", "tb"]);
}

#[test]
fn what_lingers_is_looked_at_after_its_service_is_not_followed_any_more() {
    let mut known = settled();
    let mut stopping = task("ta", "a", "n1");
    stopping.desired = TaskState::Shutdown;
    known.take_by_id(at(1), &[id("ta")], vec![stopping]);
    known.followed.clear();
    known.unsettled_at = Some(at(19));
    let next = plan(&mut known, 20, &Marks::default());
    assert_eq!((&next.tasks, &next.by_id), (&Pick::Nothing, &vec![id("ta")]));
    known.nodes.get_mut(&id("n1")).expect("there").ready = false;
    assert_eq!(
        plan(&mut known, 20, &Marks::default()).by_id,
        [],
        "on a node that is down it lingers for hours"
    );
}

#[test]
fn a_task_that_only_its_agent_knows_of_is_read_and_its_service_followed() {
    let mut known = settled();
    let first = plan(&mut known, 2, &Marks { tasks: [id("new"), id("tb")].into(), ..Marks::default() });
    assert_eq!((&first.by_id, &first.tasks), (&vec![id("new")], &Pick::Only(vec![id("b")])));
    let asked = known.take(at(2), &first, Read { tasks: vec![task("tb", "b", "n2")], ..Read::default() });
    known.take_by_id(at(2), &asked, vec![task("new", "a", "n2")]);
    assert_eq!(tasks(&known), ["new", "ta", "tb"]);
    let next = plan(&mut known, 3, &Marks::default());
    assert_eq!(next.tasks, Pick::Only(vec![id("a"), id("b")]));
}

#[test]
fn what_an_action_is_about_is_read_every_time_and_with_its_past() {
    let mut known = settled();
    let watched: BTreeSet<ServiceId> = [id("a")].into();
    let first = known.plan(at(2), &Marks::default(), &watched, true);
    assert_eq!((&first.past, &first.tasks), (&vec![id("a")], &Pick::Nothing));
    assert_eq!((&first.services, first.records), (&Pick::Only(vec![id("a")]), true));
    let mut stopping = task("old", "a", "n2");
    stopping.desired = TaskState::Shutdown;
    let failed = Failure {
        service: id("a"),
        slot: 1,
        node: None,
        state: TaskState::Rejected,
        message: "No such image".into(),
        version: 3,
    };
    let current = [task("ta", "a", "n1"), stopping].map(AnyTask::Current);
    let past = current.into_iter().chain([AnyTask::Failed(id("dead"), failed)]).collect();
    let by_id = known.take(at(2), &first, Read { services: vec![service("a", 1)], past, ..Read::default() });
    assert_eq!((by_id, tasks(&known)), (vec![], vec!["old".into(), "ta".into(), "tb".into()]));
    let next = known.plan(at(2), &Marks::default(), &watched, true);
    assert_eq!((&next.past, &next.tasks), (&vec![id("a")], &Pick::Nothing));
    assert_eq!(known.snapshot(at(2), id("n1")).failures.len(), 1);
    assert_eq!((first.nodes, next.nodes), (Pick::Only(vec![id("n1")]), Pick::Nothing), "asked a moment ago");
}

#[test]
fn a_node_that_goes_has_the_services_on_it_followed_and_one_that_comes_those_that_wait() {
    let mut known = settled();
    let nodes = Marks { nodes: true, ..Marks::default() };
    let first = plan(&mut known, 2, &nodes);
    assert_eq!((&first.nodes, &first.tasks), (&Pick::All, &Pick::Nothing));
    let mut down = node("n2", false);
    down.ready = false;
    known.take(at(2), &first, Read { nodes: vec![node("n1", true), down], ..Read::default() });
    let second = plan(&mut known, 3, &Marks::default());
    assert_eq!(second.tasks, Pick::Only(vec![id("b")]));
    let mut waits = task("tb2", "b", "");
    waits.state = TaskState::Pending;
    known.take(at(3), &second, Read { tasks: vec![waits], ..Read::default() });
    known.followed.clear();
    known.unsettled_at = Some(at(29));
    let third = plan(&mut known, 29, &nodes);
    assert_eq!(third.tasks, Pick::Nothing);
    known.take(at(29), &third, Read { nodes: vec![node("n1", true), node("n2", false)], ..Read::default() });
    assert_eq!(plan(&mut known, 29, &Marks::default()).tasks, Pick::Only(vec![id("b")]));
}

#[test]
fn what_is_not_as_wanted_is_looked_at_every_few_seconds() {
    let mut known = settled();
    known.services.get_mut(&id("a")).expect("there").mode = Mode::Replicated(2);
    assert_eq!(plan(&mut known, 4, &Marks::default()).tasks, Pick::Nothing);
    assert_eq!(plan(&mut known, 5, &Marks::default()).tasks, Pick::Only(vec![id("a")]));
    assert_eq!(plan(&mut known, 6, &Marks::default()).tasks, Pick::Nothing);
}

#[test]
fn removed_services_and_those_that_change_are_told_apart() {
    let mut known = settled();
    let first = plan(&mut known, 2, &Marks { services: [id("a"), id("new")].into(), ..Marks::default() });
    known.take(at(2), &first, Read { services: vec![service("new", 1)], ..Read::default() });
    let snapshot = known.snapshot(at(2), id("n1"));
    let left: Vec<&str> = snapshot.services.values().map(|service| service.name.as_str()).collect();
    assert_eq!(left, ["b", "new"]);
}

#[test]
fn a_flood_of_changes_has_everything_read() {
    let ids = (0..=MAX_MARKS).map(|number| id(&format!("t{number}")));
    let mut marks = Marks { tasks: ids.collect(), ..Marks::default() };
    marks.bound();
    assert_eq!(marks, Marks { all: true, ..Marks::default() });
    let mut known = settled();
    let many = (0..=MAX_FOCUS).map(|number| id(&format!("s{number}")));
    let plan = plan(&mut known, 2, &Marks { services: many.collect(), ..Marks::default() });
    assert_eq!((&plan.services, &plan.tasks, plan.full), (&Pick::All, &Pick::All, false));
}
