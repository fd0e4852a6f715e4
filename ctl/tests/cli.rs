//! The real program against a real coordinator behind a played engine: what it says, what it does, how it ends.

#[path = "cases/cost.rs"]
mod cost;
#[path = "cases/drill.rs"]
mod drill;
#[path = "cases/ui.rs"]
mod ui;
#[path = "cases/ways.rs"]
mod ways;
#[path = "cases/words.rs"]
mod words;
mod world;

use std::time::Duration;

use serde_json::{Value, json};
use world::{Said, TOKEN, run, world};

fn json_of(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_read_through_the_engine_and_a_move_is_watched_to_its_end() {
    let world = world().await;
    // Until the coordinator has read Swarm and heard the agents.
    world.run_until(&["health", "--min", "1"], 0).await;
    let calm = async {
        loop {
            let nodes = json_of(&world.run(&["nodes", "-o", "json"]).await);
            if nodes["items"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["lease"] == "live"))
            {
                return nodes;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let nodes = tokio::time::timeout(Duration::from_secs(60), calm).await.expect("agents are heard");
    assert_eq!(
        (nodes["apiVersion"].as_str(), nodes["kind"].as_str()),
        (Some("swarmguard/v1"), Some("NodeList"))
    );

    let status = world.run(&["status"]).await;
    assert!(
        status.code == 0 && status.out.starts_with("Swarm  prod (4 nodes, 1 service, 1 protected)"),
        "{}{}",
        status.out,
        status.err
    );
    assert!(!status.out.contains('\x1b'), "no colours off a terminal");
    let coloured = world.run(&["status", "--color", "always"]).await;
    assert!(coloured.out.contains('\x1b'));
    assert_eq!(world.run(&["services", "-q"]).await.out, "shop_web\n");
    let yaml = world.run(&["services", "-o", "yaml"]).await.out;
    assert!(yaml.contains("apiVersion: swarmguard/v1") && yaml.contains("name: shop_web"), "{yaml}");
    let replicas = world.run(&["ps", "shop_web", "--sort", "node"]).await;
    assert!(
        replicas.code == 0 && replicas.out.lines().count() == 3 && replicas.out.contains("10%"),
        "{}{}",
        replicas.out,
        replicas.err
    );
    let explained = world.run(&["explain", "shop_web"]).await;
    assert!(
        explained.code == 0 && explained.out.starts_with("shop_web  "),
        "{}{}",
        explained.out,
        explained.err
    );
    for list in ["alerts", "actions", "history"] {
        let said = world.run(&[list, "-o", "json"]).await;
        assert!(said.code == 0 && json_of(&said)["items"].is_array(), "{list}: {}{}", said.out, said.err);
    }
    let picture = world.run(&["top"]).await;
    assert!(
        picture.code == 0 && picture.out.contains("prod  health") && picture.out.contains("shop_web"),
        "{}{}",
        picture.out,
        picture.err
    );

    let home = world.swarm.with(|model| {
        let homes: Vec<_> = model.serving(&world.service).filter_map(|task| task.node.clone()).collect();
        homes[0].clone()
    });
    let planned = world.run(&["migrate", "shop_web", "--from", home.as_str(), "--dry-run"]).await;
    assert!(planned.code == 0 && planned.out.starts_with("would: "), "{}{}", planned.out, planned.err);
    let moved = world.run(&["migrate", "shop_web", "--from", home.as_str()]).await;
    assert_eq!(moved.code, 0, "{}{}", moved.out, moved.err);
    assert!(moved.out.contains("anna@"), "who did it: {}", moved.out);
    assert!(moved.out.contains("successor_healthy") && moved.out.contains("  done  "), "{}", moved.out);
    let (homes, violations) = world.swarm.with(|model| {
        let homes: Vec<_> = model.serving(&world.service).filter_map(|task| task.node.clone()).collect();
        (homes, model.violations.clone())
    });
    assert!(homes.len() == 2 && !homes.contains(&home), "{homes:?}");
    assert_eq!(violations, Vec::<String>::new());

    let history = json_of(&world.run(&["history", "-o", "json"]).await);
    assert_eq!(
        (history["items"][0]["what"].as_str(), history["items"][0]["outcome"].as_str()),
        (Some("migrate"), Some("done"))
    );
    let events = world.run(&["events", "--kind", "action", "--service", "shop_web"]).await;
    assert!(events.out.contains("removed") && !events.out.contains("decision"), "{}", events.out);

    let scaled = world.run(&["scale", "shop_web=3", "-o", "json"]).await;
    assert!(scaled.code == 0 && json_of(&scaled)["outcome"] == "done", "{}{}", scaled.out, scaled.err);
    assert_eq!(world.swarm.with(|model| model.serving(&world.service).count()), 3);
    let late = world.run(&["scale", "shop_web=2", "--timeout", "50ms"]).await;
    assert!(
        late.code == 6 && late.err.contains("swarmguard cancel shop_web"),
        "{} {}{}",
        late.code,
        late.out,
        late.err
    );

    let paused = world.run(&["pause", "shop_web"]).await;
    assert_eq!(paused.code, 0, "{}", paused.err);
    world.running.until(async {}).await.expect("ends in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_named_with_what_to_do_and_its_exit_code() {
    let world = world().await;
    world.ready().await;
    let cases: [(&[&str], i32, &[&str]); 12] = [
        (&["explain", "shop_wbe"], 2, &["shop_wbe", "did you mean shop_web?"]),
        (&["drain", "w9"], 2, &["w9", "swarmguard nodes -q"]),
        (&["scale", "shop_web"], 2, &["shop_web", "web=3"]),
        (&["scale", "shop_web=many"], 2, &["shop_web=many"]),
        (&["nodes", "--sort", "size"], 2, &["size", "columns are"]),
        (&["nodes", "-f", "cpu"], 2, &["cpu", "column=value"]),
        (&["nodes", "--watch=1"], 2, &["--watch", "duration with its unit"]),
        (&["events", "--kind", "noise"], 2, &["noise", "alert"]),
        (&["enable", "shop_web", "--min", "2"], 2, &["--max"]),
        (&["cancel", "shop_web"], 4, &["refused", "nothing_under_way", "needs: "]),
        (&["health", "--min", "101"], 2, &["101"]),
        (&["frobnicate"], 2, &["frobnicate"]),
    ];
    for (args, code, words) in cases {
        let said = world.run(args).await;
        assert_eq!(said.code, code, "{args:?}: {}{}", said.out, said.err);
        for word in words {
            assert!(said.err.contains(word), "{args:?} does not say {word:?}: {}", said.err);
        }
    }
    world.engine.with(|engine| engine.broken = Some(("error: unrecognized subcommand 'stdio'".into(), 2)));
    let old = world.run(&["status"]).await;
    assert!(
        old.code == 3 && old.err.contains("too old") && old.err.contains("swarmguard upgrade"),
        "{} {}",
        old.code,
        old.err
    );
    world.engine.with(|engine| {
        engine.broken = Some(("error: no coordinator serves /run/swarmguard/api.sock".into(), 1));
    });
    let starting = world.run(&["status"]).await;
    assert!(starting.code == 3 && starting.err.contains("no coordinator serves"), "{}", starting.err);
    world.engine.with(|engine| engine.services.retain(|service| service["ID"] != "c0"));
    let absent = world.run(&["status"]).await;
    assert!(
        absent.code == 3 && absent.err.contains("not installed") && absent.err.contains("swarmguard install"),
        "{}",
        absent.err
    );

    let nobody = run(&["status"], &[("DOCKER_HOST", "unix:///nonexistent/docker.sock")]).await;
    assert!(
        nobody.code == 3
            && nobody.err.contains("/nonexistent/docker.sock")
            && nobody.err.contains("DOCKER_HOST"),
        "{}",
        nobody.err
    );
    let senseless = run(&["status"], &[("DOCKER_HOST", "m1:2375")]).await;
    assert!(senseless.code == 2 && senseless.err.contains("ssh://"), "{}", senseless.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_come_by_address_with_a_token() {
    let world = world().await;
    world.ready().await;
    let url = format!("http://{}", world.running.api);
    let token = world.dir.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).expect("written");
    let token = token.display().to_string();
    let by_address = ["--coordinator", &url, "--token-file", &token];
    let services = run(&[&by_address[..], &["services", "-q"]].concat(), &[]).await;
    assert_eq!((services.code, services.out.as_str()), (0, "shop_web\n"), "{}", services.err);
    let paused = run(&[&by_address[..], &["pause"]].concat(), &[]).await;
    assert_eq!(paused.code, 0, "{}", paused.err);
    let refused = run(&["--coordinator", &url, "resume"], &[]).await;
    assert_eq!(refused.code, 3, "{}{}", refused.out, refused.err);
    std::fs::write(world.dir.path().join("wrong"), "not-the-token-of-anybody").expect("written");
    let wrong = world.dir.path().join("wrong").display().to_string();
    let refused = run(&["--coordinator", &url, "--token-file", &wrong, "resume"], &[]).await;
    assert!(refused.code == 3 && refused.err.contains("token"), "{} {}", refused.code, refused.err);
    let secure = run(&["--coordinator", "https://127.0.0.1:1", "status"], &[]).await;
    assert!(secure.code == 3 || secure.code == 2, "{}", secure.err);
    let senseless = run(&["--coordinator", "m1", "status"], &[]).await;
    assert!(senseless.code == 2 && senseless.err.contains("https://manager:7480"), "{}", senseless.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_are_written_into_the_raw_spec_and_not_into_a_rollout() {
    let world = world().await;
    let enabled = world.run(&["enable", "shop_web", "--surge", "--min", "1", "--max", "3"]).await;
    assert_eq!(enabled.code, 0, "{}{}", enabled.out, enabled.err);
    let (path, body) = world.engine.with(|engine| engine.said.pop()).expect("written");
    assert_eq!(path, "POST /services/w1/update?version=7&registryAuthFrom=spec");
    assert_eq!(body["FromTomorrow"], json!([1]), "what we do not know goes back as it came");
    assert_eq!(body["TaskTemplate"]["Placement"], json!({}), "never null");
    let labels = json!({"swarmguard.enable": "true", "swarmguard.migrate": "surge", "swarmguard.scale.min": "1", "swarmguard.scale.max": "3"});
    assert_eq!(body["Labels"], labels);

    let senseless = world.run(&["enable", "shop_web", "--min", "4", "--max", "3"]).await;
    assert!(senseless.code == 2 && senseless.err.contains("swarmguard.scale.min"), "{}", senseless.err);
    world.engine.with(|engine| engine.services[1]["UpdateStatus"] = json!({"State": "updating"}));
    let refused = world.run(&["enable", "shop_web"]).await;
    assert!(
        refused.code == 4 && refused.err.contains("rollout") && refused.err.contains("updating"),
        "{}",
        refused.err
    );
    let own = world.run(&["disable", "swarmguard_coordinator"]).await;
    assert!(own.code == 4 && own.err.contains("own_service"), "{}", own.err);
    assert!(world.engine.with(|engine| engine.said.is_empty()), "nothing else was written");

    let undrained = world.run(&["undrain", "m1"]).await;
    assert_eq!(undrained.code, 0, "{}", undrained.err);
    let (path, body) = world.engine.with(|engine| engine.said.pop()).expect("written");
    assert_eq!((path.as_str(), &body["Availability"]), ("POST /nodes/n1/update?version=3", &json!("active")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preflight_says_what_stands_against_an_installation() {
    let world = world().await;
    let fit = world.run(&["check", "--pre", "--short"]).await;
    assert_eq!(fit.code, 0, "{}{}", fit.out, fit.err);
    assert!(fit.out.contains("1 manager"), "a warning: {}", fit.out);
    assert_eq!(world.run(&["check", "--pre", "--strict"]).await.code, 7);
    let again = world.run(&["install", "--agent-image", "a:1", "--coordinator-image", "c:1"]).await;
    assert!(again.code == 4 && again.err.contains("installed"), "{}", again.err);
    world.engine.with(|engine| {
        engine.info["CgroupVersion"] = json!("1");
        engine.nodes[0]["Description"]["Engine"]["EngineVersion"] = json!("29.1.2");
    });
    let unfit = world.run(&["check", "--pre", "-o", "json"]).await;
    assert_eq!(unfit.code, 7);
    let lines = json_of(&unfit)["lines"].clone();
    let state = |code: &str| {
        let line = lines.as_array().and_then(|lines| lines.iter().find(|line| line["code"] == code));
        line.map(|line| line["state"].clone())
    };
    assert_eq!((state("cgroup"), state("engines")), (Some(json!("failed")), Some(json!("warning"))));
    let stack =
        world.run(&["install", "--print", "--agent-image", "a:1", "--coordinator-image", "c:1"]).await;
    assert!(stack.code == 0 && stack.out.contains("image: a:1"), "{}{}", stack.out, stack.err);
    let usual = world.run(&["install", "--print"]).await;
    assert!(
        usual.out.contains(&format!("image: swarmguard/agent:{}", env!("CARGO_PKG_VERSION"))),
        "{}",
        usual.out
    );
}

#[tokio::test]
async fn it_introduces_itself_to_docker_and_prints_its_manual() {
    let dir = tempfile::tempdir().expect("a directory");
    let plugin = dir.path().join("docker-swarmguard");
    std::fs::copy(env!("CARGO_BIN_EXE_swarmguard"), &plugin).expect("copied");
    let output =
        std::process::Command::new(&plugin).arg("docker-cli-plugin-metadata").output().expect("runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (metadata["SchemaVersion"].as_str(), metadata["Vendor"].as_str()),
        (Some("0.1.0"), Some("SwarmGuard"))
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let completion = run(&["completion", shell], &[]).await;
        let asks = completion.out.contains("COMPLETE") && completion.out.contains("swarmguard");
        assert!(completion.code == 0 && asks, "{shell}: {}{}", completion.out, completion.err);
    }
    let man = run(&["man"], &[]).await;
    assert!(man.code == 0 && man.out.contains(".TH swarmguard"), "{}", man.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_completes_with_the_names_of_the_moment() {
    let world = world().await;
    world.ready().await;
    let host = format!("unix://{}", world.engine.socket.display());
    let complete = async |words: &[&str], engine: &str| {
        let index = (words.len() - 1).to_string();
        let env = [
            ("DOCKER_HOST", engine),
            ("COMPLETE", "bash"),
            ("_CLAP_COMPLETE_INDEX", &*index),
            ("_CLAP_IFS", "\n"),
        ];
        let said = run(&[&["--"], words].concat(), &env).await;
        (said.code, said.out)
    };
    let found = async |words: &[&str]| complete(words, &host).await.1;
    assert_eq!(found(&["swarmguard", "explain", "sh"]).await.trim(), "shop_web");
    assert_eq!(found(&["swarmguard", "scale", "sh"]).await.trim(), "shop_web=");
    let nodes = found(&["swarmguard", "drain", ""]).await;
    assert_eq!(nodes.lines().filter(|line| !line.starts_with('-')).count(), 4, "{nodes}");
    assert!(found(&["swarmguard", "rollb"]).await.contains("rollback"));
    let named = ["swarmguard", "-H", &*host, "explain", ""];
    assert!(
        complete(&named, "unix:///nonexistent/docker.sock").await.1.contains("shop_web"),
        "the line names it"
    );
    let nobody = complete(&["swarmguard", "explain", "sh"], "unix:///nonexistent/docker.sock").await;
    assert_eq!((nobody.0, nobody.1.trim()), (0, ""), "no error in the middle of a line");
}
