//! What is said is read by people who did not write the rules: plain words, figures for what is claimed, and something to
//! do about it.

use super::*;

/// Words of this code, of the kernel or of the trade that an operator need not know.
const JARGON: [&str; 14] = [
    "psi",
    "cgroup",
    "epoch",
    "hysteresis",
    "median",
    "basis point",
    "tombstone",
    "surge",
    "edge",
    "ewma",
    "witness",
    "culprit",
    "sans-io",
    "quiesce",
];

/// Rules that claim nothing that could be counted.
const WITHOUT_FIGURES: [Rule; 13] = [
    Rule::MigrateOff,
    Rule::OwnService,
    Rule::Labels,
    Rule::Calm,
    Rule::NotReplicated,
    Rule::StaleAlert,
    Rule::NoLease,
    Rule::NoData,
    Rule::NetworkUnknown,
    Rule::NotServing,
    Rule::NoHealthcheck,
    Rule::LocalVolumes,
    Rule::SlotTemplates,
];

fn spec(pointer: &str, value: serde_json::Value) -> Service {
    let mut service = replicated("s1", 2);
    let (parent, key) = pointer.rsplit_once('/').expect("a path");
    service.spec.pointer_mut(parent).expect("there")[key] = value;
    service
}

fn worlds() -> Vec<World> {
    let plain = || replicated("s1", 2);
    let scaling = |max: &str| scaled(plain(), "1", max);
    let mut all: Vec<World> = [
        plain(),
        scaling("5"),
        with_label(plain(), "migrate", "off"),
        with_label(plain(), "cpu.high", "lots"),
        with_label(plain(), "role", "agent"),
        spec("/TaskTemplate/ContainerSpec/Healthcheck", json!({"Test": ["NONE"]})),
        spec("/TaskTemplate/ContainerSpec/Mounts", json!([{"Type": "bind", "Source": "/a", "Target": "/b"}])),
        spec("/TaskTemplate/ContainerSpec/Env", json!(["A={{.Task.Slot}}"])),
        spec("/TaskTemplate/Placement", json!({"Constraints": ["node.id==n2"]})),
    ]
    .into_iter()
    .flat_map(|service| {
        [
            hot_world(service.clone(), HOT),
            hot_world(service.clone(), Heat { node: 50, ..HOT }),
            all_hot(service, HOT),
        ]
    })
    .collect();
    all.push(all_hot(scaling("5"), Heat { node: 50, ..HOT }));
    all.push(all_hot(scaling("2"), Heat { node: 50, ..HOT }));
    all.push(all_hot(plain(), Heat { node: 50, ..HOT }));
    all.push(all_hot(scaling("5"), Heat { node: 96, other: 95, ..HOT }));
    all.push(hot_world(plain(), Heat { cpu: 10, memory: 90, network: 5, node: 20, other: 10 }));
    all.push(hot_world(scaled(replicated("s1", 2), "3", "5"), Heat { cpu: 80, ..HOT }));
    all.push(hot_world(scaled(replicated("s1", 2), "1", "1"), Heat { cpu: 80, ..HOT }));
    all
}

#[test]
fn every_verdict_is_told_in_plain_words_with_figures_and_what_would_change_it() {
    let mut rules = BTreeSet::new();
    for world in worlds() {
        for verdict in decide(&world.view, &situation(), at(6_100)) {
            let judgement = &verdict.judgement;
            rules.insert(judgement.rule);
            let said = format!("{} {}", judgement.text, judgement.otherwise).to_lowercase();
            for word in JARGON {
                assert!(!said.contains(word), "{word:?} in {said:?}");
            }
            let figures = judgement.text.chars().any(|it| it.is_ascii_digit());
            assert!(figures || WITHOUT_FIGURES.contains(&judgement.rule), "no figure: {:?}", judgement.text);
            if judgement.conclusion != Conclusion::Calm {
                assert!(!judgement.otherwise.is_empty(), "nothing to do about it: {judgement:?}");
            }
        }
    }
    assert!(rules.len() >= 14, "too few rules were heard: {rules:?}");
}
