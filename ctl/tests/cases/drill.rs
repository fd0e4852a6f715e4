//! Drills through the real program: rails, lock, job, report. What faults do to a kernel is tested with the agent.

use serde_json::{Value, json};

use crate::world::{Said, World, engine::service, world};

/// Two nodes, an agent, and three replicas of `shop_web`.
async fn stage() -> World {
    let world = world().await;
    world.ready().await;
    world.run_until(&["health", "--min", "90"], 0).await;
    world.engine.with(|engine| {
        engine.services.push(service("a0", "swarmguard_agent", &json!({"swarmguard.role": "agent"})));
        engine.nodes.push(json!({"ID": "n2", "Version": {"Index": 3},
            "Spec": {"Role": "worker", "Availability": "active"}, "Description": {"Hostname": "w1",
            "Resources": {"NanoCPUs": 2_000_000_000_u64, "MemoryBytes": 1_u64 << 30}},
            "Status": {"State": "ready", "Addr": "10.0.0.2"}}));
        engine.nodes[0]["ManagerStatus"] = json!({"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377"});
        for number in 0..3 {
            engine.tasks.push(json!({"ID": format!("t{number}"), "ServiceID": "w1", "NodeID": "n2",
                "DesiredState": "running",
                "Status": {"State": "running", "ContainerStatus": {"ContainerID": format!("box-{number}")}}}));
        }
        engine.services[1]["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(3);
    });
    world
}

fn opt_in(world: &World) {
    world.engine.with(|engine| engine.services[1]["Spec"]["Labels"] = json!({"swarmguard.drill": "true"}));
}

fn refused(said: &Said, code: &str, needs: &str) {
    let right = said.code == 4 && said.err.contains(code) && said.err.contains(needs);
    assert!(right, "{} {}{}", said.code, said.out, said.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_keeps_to_its_rails_and_leaves_a_report_and_nothing_else() {
    let world = stage().await;
    let kill = ["drill", "kill-task", "shop_web", "--for", "1s", "--yes"];
    refused(&world.run(&kill).await, "not_opted_in", "needs: the label swarmguard.drill=true on shop_web");
    assert!(world.engine.with(|engine| engine.said.is_empty()), "nothing was written");
    opt_in(&world);
    refused(&world.run(&["drill", "partition", "w1", "--yes"]).await, "last_replica", "--allow-outage");
    refused(&world.run(&["drill", "disk", "m1", "--yes"]).await, "manager_disk", "needs: a worker");
    refused(&world.run(&["drill", "partition", "m1", "--leader", "--yes"]).await, "quorum", "managers");
    let asked = world.run(&kill[..kill.len() - 1]).await;
    assert!(asked.code == 2 && asked.err.contains("--yes"), "{} {}", asked.code, asked.err);
    let planned = world.run(&["drill", "cpu", "w1", "--dry-run"]).await;
    assert!(
        planned.code == 0 && planned.out.contains("keep 2 threads busy on w1 for 60s"),
        "{}{}",
        planned.out,
        planned.err
    );

    let played = world.run(&kill).await;
    assert!(
        played.code == 0 && played.out.contains("**passed**"),
        "{} {}{}",
        played.code,
        played.out,
        played.err
    );
    let said = world.engine.with(|engine| std::mem::take(&mut engine.said));
    let job =
        said.iter().find(|(path, _)| path.starts_with("POST /services/create")).expect("a job").1.clone();
    let container = &job["TaskTemplate"]["ContainerSpec"];
    assert_eq!(container["Command"], json!(["/swarmguard-agent", "drill", "kill", "--container", "box-0"]));
    assert_eq!(container["CapabilityDrop"], json!(["ALL"]));
    assert_eq!(job["TaskTemplate"]["Placement"]["Constraints"], json!(["node.id == n2"]));
    let names = world.engine.with(|engine| {
        assert!(engine.services.iter().all(|service| service["ID"] != "made3"), "the job is gone");
        engine
            .configs
            .iter()
            .map(|one| one["Spec"]["Name"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    });
    assert!(names.len() == 1 && names[0].starts_with("swarmguard-drill-report-"), "{names:?}");
    let listed = world.run(&["drill", "ls"]).await;
    assert!(listed.out.contains("passed  kill-task shop_web"), "{}", listed.out);
    let page = world.run(&["drill", "report", "--report", "html"]).await;
    assert!(page.code == 0 && page.out.starts_with("<!DOCTYPE html>"), "{}{}", page.out, page.err);
    let report: Value =
        serde_json::from_str(&world.run(&["drill", "report", "-o", "json"]).await.out).expect("JSON");
    assert_eq!((report["kind"].as_str(), report["passed"].as_bool()), (Some("DrillReport"), Some(true)));
    let none = world.run(&["drill", "report", "d0"]).await;
    assert!(
        none.code == 2 && none.err.contains("d0") && none.err.contains("swarmguard drill ls"),
        "{}",
        none.err
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_drill_at_a_time_and_a_lock_that_lapses() {
    let world = stage().await;
    opt_in(&world);
    let kill = ["drill", "kill-task", "shop_web", "--for", "1s", "--yes"];
    let lock = |until: u64| {
        let labels = json!({"swarmguard.drill.id": "d7", "swarmguard.drill.until": until.to_string()});
        json!({"ID": "l", "Spec": {"Name": "swarmguard-drill", "Labels": labels, "Data": "Y3B1"}})
    };
    world.engine.with(|engine| engine.configs = vec![lock(u64::MAX)]);
    let held = world.run(&kill).await;
    refused(&held, "drill_running", "swarmguard drill stop");
    assert!(held.err.contains("cpu"), "what it is: {}", held.err);
    let stopped = world.run(&["drill", "stop"]).await;
    assert!(stopped.code == 0 && stopped.out.contains("ended"), "{}", stopped.out);
    world.engine.with(|engine| engine.configs = vec![lock(1)]);
    let played = world.run(&kill).await;
    assert_eq!(played.code, 0, "a lock whose time is over is nobody's: {}{}", played.out, played.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_understood_whole_before_it_begins() {
    let world = stage().await;
    opt_in(&world);
    let file = world.dir.path().join("plan.toml");
    let path = file.display().to_string();
    let step = "[[drill]]\nfault = \"kill-task\"\ntarget = \"shop_web\"\nfor = \"1s\"\n";
    for (second, word) in [
        ("[[drill]]\nfault = \"earthquake\"\ntarget = \"w1\"\n", "earthquake"),
        ("[[drill]]\nfault = \"cpu\"\ntarget = \"w1\"\nfor = \"11m\"\n", "drill 2"),
        ("[[drill]]\nfault = \"stop\"\ntarget = \"w1\"\n", "drill 2"),
        ("[[drill]]\nfault = \"cpu\"\ntargets = \"w1\"\n", "targets"),
    ] {
        std::fs::write(&file, format!("{step}{second}")).expect("written");
        let said = world.run(&["drill", "plan", &path, "--yes"]).await;
        assert!(said.code == 2 && said.err.contains(word), "{second}: {} {}", said.code, said.err);
    }
    assert!(world.engine.with(|engine| engine.said.is_empty()), "nothing was done");
    std::fs::write(&file, step).expect("written");
    let played = world.run(&["drill", "plan", &path, "--yes"]).await;
    assert!(
        played.code == 0 && played.out.contains("**passed**"),
        "{} {}{}",
        played.code,
        played.out,
        played.err
    );
}
