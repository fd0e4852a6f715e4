//! The scripts: every rule of Swarm that SwarmGuard leans on, as something done and what must come of it.

use serde_json::{Value, json};

use super::script::{Answer, Call, Fields, Pick, Script, Step, Then, Until};

/// All of them, those that need no power switch first.
pub fn all() -> Vec<Script> {
    vec![
        scaling(),
        constraint(),
        harmless(),
        start_first(),
        stop_first(),
        surge_of_one(),
        surge_of_many(),
        second_write(),
        enforcer(),
        enforcer_off(),
        drain(),
        paused_nodes(),
        most_replicas(),
        one_of_two(),
        slot_move(),
        interrupted(),
        taken_back(),
        taken_back_carelessly(),
        crash(),
        versions(),
        job_again(),
        node_down(),
        job_lost(),
    ]
}

/// What every service of a script begins as.
fn service(replicas: u64, more: Fields) -> Step {
    let ms = 1_000_000_u64;
    let mut fields: Fields = vec![
        ("/Labels", json!({})),
        (
            "/TaskTemplate/ContainerSpec/Healthcheck",
            json!({
                "Test": ["CMD", "/web-stress", "healthcheck"],
                "Interval": 400 * ms, "Timeout": 20_000 * ms, "Retries": 9, "StartPeriod": 60_000 * ms,
            }),
        ),
        ("/TaskTemplate/RestartPolicy", json!({"Condition": "any", "Delay": 200 * ms})),
        ("/TaskTemplate/Placement", json!({})),
        ("/Mode/Replicated/Replicas", json!(replicas)),
        (
            "/UpdateConfig",
            json!({
                "Parallelism": 1, "Order": "start-first", "FailureAction": "pause", "Monitor": 500 * ms,
            }),
        ),
    ];
    fields.extend(more);
    call(Call::Create(fields), vec![Then::Waiting(0)])
}

fn call(call: Call, then: Vec<Then>) -> Step {
    Step::Call { call, answer: Answer::Done, until: Until::Rest, then }
}

fn write(fields: Fields, then: Vec<Then>) -> Step {
    call(Call::Write(fields), then)
}

/// A write of which only the beginning is awaited.
fn begun(fields: Fields, then: Vec<Then>) -> Step {
    Step::Call { call: Call::Write(fields), answer: Answer::Done, until: Until::Started, then }
}

fn refused(call: Call, answer: Answer) -> Step {
    Step::Call { call, answer, until: Until::Rest, then: vec![Then::DiedAnywhere(0)] }
}

fn cast(role: &'static str, pick: Pick) -> Step {
    Step::Cast { role, pick }
}

fn availability(role: &'static str, word: &str, then: Vec<Then>) -> Step {
    call(Call::Node(role, vec![("/Availability", json!(word))]), then)
}

/// A write that changes nothing of weight on a node.
fn touch(role: &'static str, then: Vec<Then>) -> Step {
    call(Call::Node(role, vec![("/Labels/touched", json!("1"))]), then)
}

fn off(role: &str) -> Value {
    json!([format!("node.id!={{{role}}}")])
}

fn nowhere() -> Value {
    json!([{"OS": "none", "Architecture": "none"}])
}

fn replicas(count: u64) -> (&'static str, Value) {
    ("/Mode/Replicated/Replicas", json!(count))
}

fn no_placement() -> (&'static str, Value) {
    ("/TaskTemplate/Placement", json!({}))
}

/// Tasks on this node no longer fit, and no node takes their successors.
fn mark(role: &'static str) -> (&'static str, Value) {
    ("/TaskTemplate/Placement", json!({"Constraints": off(role), "Platforms": nowhere()}))
}

fn keep_off(role: &'static str) -> (&'static str, Value) {
    ("/TaskTemplate/Placement", json!({"Constraints": off(role)}))
}

const CALM: [Then; 2] = [Then::DiedAnywhere(0), Then::Waiting(0)];

fn scaling() -> Script {
    Script {
        name: "scaling",
        about: "fewest tasks of the service first; the nodes with most copies lose theirs first",
        steps: vec![
            service(3, vec![]),
            write(vec![replicas(6)], CALM.to_vec()),
            write(vec![replicas(3)], vec![Then::DiedAnywhere(3), Then::NeverBelow(3)]),
            write(vec![replicas(5)], CALM.to_vec()),
            write(vec![replicas(4)], vec![Then::DiedAnywhere(1), Then::NeverBelow(4)]),
            write(vec![replicas(1)], vec![Then::DiedAnywhere(3)]),
        ],
    }
}

fn constraint() -> Script {
    Script {
        name: "constraint",
        about: "a constraint-only update replaces the tasks on nodes that no longer match, and taking it off moves nothing",
        steps: vec![
            service(4, vec![]),
            cast("source", Pick::Fullest),
            write(
                vec![keep_off("source")],
                vec![
                    Then::Died(2, "source"),
                    Then::NeverBelow(4),
                    Then::On(0, "source"),
                    Then::Update("completed"),
                ],
            ),
            write(vec![no_placement()], vec![Then::DiedAnywhere(0), Then::On(0, "source"), Then::Update("")]),
        ],
    }
}

fn harmless() -> Script {
    let spread = json!([{"Spread": {"SpreadDescriptor": "node.labels.zone"}}]);
    Script {
        name: "harmless",
        about: "preferences, MaxReplicas, platforms, service labels and update settings dirty nothing",
        steps: vec![
            service(3, vec![]),
            write(vec![("/TaskTemplate/Placement/Preferences", spread)], CALM.to_vec()),
            write(vec![("/TaskTemplate/Placement/MaxReplicas", json!(7))], CALM.to_vec()),
            write(vec![("/TaskTemplate/Placement/Platforms", nowhere())], CALM.to_vec()),
            write(vec![("/Labels/note", json!("x"))], CALM.to_vec()),
            write(vec![("/UpdateConfig/Parallelism", json!(2))], CALM.to_vec()),
        ],
    }
}

fn start_first() -> Script {
    Script {
        name: "start-first",
        about: "a changed container replaces every task, and the old one stops once the new one is healthy",
        steps: vec![
            service(2, vec![]),
            write(
                vec![("/TaskTemplate/ContainerSpec/Env", json!(["A=1"]))],
                vec![Then::DiedAnywhere(2), Then::NeverBelow(2), Then::Update("completed")],
            ),
            write(
                vec![("/TaskTemplate/ForceUpdate", json!(1))],
                vec![Then::DiedAnywhere(2), Then::NeverBelow(2), Then::Update("completed")],
            ),
        ],
    }
}

fn stop_first() -> Script {
    Script {
        name: "stop-first",
        about: "stop-first costs a replica for the while",
        steps: vec![
            service(3, vec![("/UpdateConfig/Order", json!("stop-first"))]),
            write(
                vec![("/TaskTemplate/ContainerSpec/Labels", json!({"a": "1"}))],
                vec![Then::DiedAnywhere(3), Then::FellTo(2), Then::Update("completed")],
            ),
        ],
    }
}

/// Pause, one replica more, the mark, the write that removes, the identical write, and back.
fn surge(name: &'static str, count: u64) -> Script {
    let usual = usize::try_from(count).unwrap_or(usize::MAX);
    Script {
        name,
        about: "the steps of a surge migration: exactly the replica on the source goes",
        steps: vec![
            service(count, vec![]),
            cast("source", Pick::Fullest),
            availability("source", "pause", CALM.to_vec()),
            write(vec![replicas(count + 1)], CALM.to_vec()),
            write(
                vec![mark("source")],
                vec![Then::DiedAnywhere(0), Then::Doubled(1), Then::Waiting(1), Then::NeverBelow(usual + 1)],
            ),
            write(
                vec![replicas(count), no_placement()],
                vec![Then::Died(1, "source"), Then::Doubled(0), Then::Waiting(0), Then::NeverBelow(usual)],
            ),
            write(vec![], CALM.to_vec()),
            availability("source", "active", CALM.to_vec()),
        ],
    }
}

fn surge_of_one() -> Script {
    surge("surge-of-one", 1)
}

fn surge_of_many() -> Script {
    surge("surge-of-many", 5)
}

fn second_write() -> Script {
    Script {
        name: "second-write",
        about: "a second write in mid-update, even a label, stops the old task before the new one runs",
        steps: vec![
            service(2, vec![]),
            cast("source", Pick::Fullest),
            write(vec![mark("source")], vec![Then::DiedAnywhere(0), Then::Doubled(1), Then::Waiting(1)]),
            write(
                vec![("/Labels/note", json!("x"))],
                vec![Then::Died(1, "source"), Then::Doubled(0), Then::Waiting(1), Then::FellTo(1)],
            ),
            write(vec![no_placement()], CALM.to_vec()),
        ],
    }
}

fn enforcer() -> Script {
    Script {
        name: "enforcer",
        about: "any write to a node rejects the tasks there that its services' constraints forbid: stop first",
        steps: vec![
            service(2, vec![]),
            cast("source", Pick::Fullest),
            write(vec![mark("source")], vec![Then::DiedAnywhere(0), Then::Doubled(1)]),
            touch("source", vec![Then::Died(1, "source"), Then::FellTo(1)]),
            write(vec![no_placement()], CALM.to_vec()),
        ],
    }
}

fn enforcer_off() -> Script {
    Script {
        name: "enforcer-off",
        about: "pausing a node switches its enforcer off",
        steps: vec![
            service(2, vec![]),
            cast("source", Pick::Fullest),
            availability("source", "pause", CALM.to_vec()),
            write(vec![mark("source")], vec![Then::DiedAnywhere(0), Then::Doubled(1)]),
            touch("source", vec![Then::DiedAnywhere(0), Then::Doubled(1), Then::NeverBelow(2)]),
            write(vec![no_placement()], vec![Then::DiedAnywhere(0), Then::Doubled(0), Then::Waiting(0)]),
            availability("source", "active", CALM.to_vec()),
        ],
    }
}

fn drain() -> Script {
    Script {
        name: "drain",
        about: "drain stops first; coming back moves nothing",
        steps: vec![
            service(3, vec![]),
            cast("source", Pick::Fullest),
            availability(
                "source",
                "drain",
                vec![Then::Died(1, "source"), Then::FellTo(2), Then::On(0, "source")],
            ),
            availability("source", "active", vec![Then::DiedAnywhere(0), Then::On(0, "source")]),
        ],
    }
}

fn paused_nodes() -> Script {
    Script {
        name: "paused-nodes",
        about: "a paused node keeps its tasks and takes none; what waits is placed once a node takes it",
        steps: vec![
            service(2, vec![]),
            cast("empty", Pick::Emptiest),
            availability("node1", "pause", CALM.to_vec()),
            availability("node2", "pause", CALM.to_vec()),
            availability("node3", "pause", CALM.to_vec()),
            write(vec![replicas(3)], vec![Then::DiedAnywhere(0), Then::Waiting(1)]),
            availability(
                "empty",
                "active",
                vec![Then::DiedAnywhere(0), Then::Waiting(0), Then::On(1, "empty")],
            ),
        ],
    }
}

fn most_replicas() -> Script {
    let most = |count: u64| ("/TaskTemplate/Placement/MaxReplicas", json!(count));
    Script {
        name: "max-replicas",
        about: "MaxReplicas counts old and new: a start-first replacement waits for ever",
        steps: vec![
            service(3, vec![most(1)]),
            write(vec![replicas(4)], vec![Then::DiedAnywhere(0), Then::Waiting(1)]),
            write(vec![replicas(3)], CALM.to_vec()),
            cast("source", Pick::Fullest),
            write(
                vec![("/TaskTemplate/Placement/Constraints", off("source"))],
                vec![Then::DiedAnywhere(0), Then::Doubled(1), Then::Waiting(1), Then::Update("updating")],
            ),
            write(
                vec![("/TaskTemplate/Placement/Constraints", json!([]))],
                vec![Then::DiedAnywhere(0), Then::Doubled(0), Then::Waiting(0)],
            ),
        ],
    }
}

fn one_of_two() -> Script {
    let rest = ("/UpdateConfig/Delay", json!(600_000_000_000_u64));
    let no_rest = ("/UpdateConfig/Delay", json!(0));
    Script {
        name: "one-of-two",
        about: "with a long delay only one of two tasks on the source moves, and taking the constraint off keeps the other",
        steps: vec![
            service(4, vec![]),
            cast("source", Pick::Fullest),
            write(
                vec![keep_off("source"), rest],
                vec![
                    Then::Died(1, "source"),
                    Then::On(1, "source"),
                    Then::NeverBelow(4),
                    Then::Update("updating"),
                ],
            ),
            write(
                vec![no_placement(), no_rest],
                vec![Then::DiedAnywhere(0), Then::On(1, "source"), Then::Update("")],
            ),
        ],
    }
}

/// A replacement in its slot that takes six seconds to be healthy, in a service of two.
fn slow_replacement(then: Vec<Step>) -> Vec<Step> {
    let slowly = ("/TaskTemplate/ContainerSpec/Healthcheck/Interval", json!(6_000_000_000_u64));
    let mut steps = vec![
        service(2, vec![slowly]),
        cast("source", Pick::Fullest),
        availability("source", "pause", CALM.to_vec()),
        begun(vec![keep_off("source")], vec![Then::DiedAnywhere(0), Then::Doubled(1), Then::NeverBelow(2)]),
        cast("target", Pick::Youngest),
    ];
    steps.extend(then);
    steps.push(availability("source", "active", CALM.to_vec()));
    steps
}

fn slot_move() -> Script {
    Script {
        name: "slot-move",
        about: "a replacement in its own slot: the old task stops when the new one is healthy, if nobody interferes",
        steps: slow_replacement(vec![
            // The write that began it is followed to its end by one that changes nothing on a node that hosts nothing.
            touch("target", vec![Then::Died(1, "source"), Then::NeverBelow(2), Then::On(1, "target")]),
            write(vec![no_placement()], vec![Then::DiedAnywhere(0), Then::On(1, "target")]),
        ]),
    }
}

fn interrupted() -> Script {
    Script {
        name: "interrupted",
        about: "a label on the service while the replacement starts stops the old task at once",
        steps: slow_replacement(vec![
            write(
                vec![("/Labels/note", json!("x"))],
                vec![Then::Died(1, "source"), Then::FellTo(1), Then::On(1, "target")],
            ),
            write(vec![no_placement()], vec![Then::DiedAnywhere(0), Then::Waiting(0)]),
        ]),
    }
}

fn taken_back() -> Script {
    Script {
        name: "taken-back",
        about: "a replacement that starts is taken back by forbidding its node instead of the source, and only then restoring",
        steps: slow_replacement(vec![
            write(
                vec![keep_off("target")],
                vec![Then::DiedAnywhere(0), Then::Doubled(0), Then::NeverBelow(2), Then::On(1, "source")],
            ),
            write(
                vec![no_placement()],
                vec![Then::DiedAnywhere(0), Then::NeverBelow(2), Then::On(1, "source")],
            ),
        ]),
    }
}

fn taken_back_carelessly() -> Script {
    Script {
        name: "taken-back-carelessly",
        about: "restoring the placement while the replacement starts leaves to chance which of the two stays",
        steps: slow_replacement(vec![write(vec![no_placement()], vec![Then::Doubled(0), Then::Waiting(0)])]),
    }
}

fn crash() -> Script {
    Script {
        name: "crash",
        about: "a dead task is replaced in its slot",
        steps: vec![
            service(3, vec![]),
            cast("source", Pick::Fullest),
            call(
                Call::Crash("source"),
                vec![Then::Died(1, "source"), Then::FellTo(2), Then::Waiting(0), Then::Doubled(0)],
            ),
        ],
    }
}

fn versions() -> Script {
    let note = |word: &str| vec![("/Labels/note", json!(word))];
    let label = |stale| Call::Label { name: "lock", stale };
    Script {
        name: "versions",
        about: "a stale version is refused, a config's name is a lock, its labels are compare-and-swap",
        steps: vec![
            service(1, vec![]),
            write(note("1"), CALM.to_vec()),
            refused(Call::WriteStale(note("2")), Answer::Conflict),
            write(note("3"), CALM.to_vec()),
            call(Call::Config("lock"), vec![]),
            refused(Call::Config("lock"), Answer::Conflict),
            call(label(false), vec![]),
            refused(label(true), Answer::Conflict),
            call(label(false), vec![]),
        ],
    }
}

fn power(call: Call, until: Until, then: Vec<Then>) -> Step {
    Step::Call { call, answer: Answer::Done, until, then }
}

fn node_down() -> Script {
    Script {
        name: "node-down",
        about: "a silent node is given up after three heartbeats, its tasks are replaced, and its return moves nothing",
        steps: vec![
            service(3, vec![]),
            power(
                Call::PowerCut("node3"),
                Until::Changed,
                vec![Then::Died(1, "node3"), Then::FellTo(2), Then::On(0, "node3"), Then::Waiting(0)],
            ),
            power(Call::PowerOn("node3"), Until::Changed, vec![Then::DiedAnywhere(0), Then::On(0, "node3")]),
        ],
    }
}

/// What every job of a script begins as.
fn job(completions: u64, more: Fields) -> Step {
    let mut fields: Fields = vec![
        ("/Labels", json!({})),
        ("/TaskTemplate/RestartPolicy", json!({"Condition": "on-failure", "Delay": 200_000_000_u64})),
        ("/TaskTemplate/Placement", json!({})),
        ("/Mode/ReplicatedJob", json!({"MaxConcurrent": 2, "TotalCompletions": completions})),
    ];
    fields.extend(more);
    call(Call::Create(fields), vec![Then::Waiting(0)])
}

fn job_again() -> Script {
    let short: Fields = vec![
        ("/TaskTemplate/ContainerSpec/Command", json!(["/web-stress", "--help"])),
        ("/TaskTemplate/ContainerSpec/Healthcheck", json!({"Test": ["NONE"]})),
    ];
    Script {
        name: "job-again",
        about: "a job runs so many at once until all are done; any write, also an identical one, runs all of it again",
        steps: vec![job(3, short), write(vec![], vec![Then::Waiting(0)])],
    }
}

fn job_lost() -> Script {
    let checked = json!({
        "Test": ["CMD", "/web-stress", "healthcheck"],
        "Interval": 400_000_000_u64, "Timeout": 20_000_000_000_u64, "StartPeriod": 60_000_000_000_u64,
    });
    let on_three: Fields = vec![
        ("/TaskTemplate/ContainerSpec/Healthcheck", checked),
        ("/TaskTemplate/Placement", json!({"Constraints": ["node.id=={node3}"]})),
    ];
    Script {
        name: "job-lost",
        about: "a job whose node is lost counts as running all the while; a write runs it elsewhere",
        steps: vec![
            job(1, on_three),
            power(
                Call::PowerCut("node3"),
                Until::LongRest,
                vec![Then::DiedAnywhere(0), Then::On(1, "node3")],
            ),
            power(
                Call::Write(vec![no_placement()]),
                Until::Changed,
                vec![Then::Died(1, "node3"), Then::On(0, "node3"), Then::Waiting(0)],
            ),
            power(Call::PowerOn("node3"), Until::Changed, vec![Then::DiedAnywhere(0), Then::On(0, "node3")]),
        ],
    }
}
