//! The terminal view on a screen of 80x24 that is not there, driven by keys.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend};
use serde_json::json;
use swarmguard_common::{
    api::Overview,
    journal::{Entry, Kind},
    time::Time,
};

use super::{
    draw,
    feed::News,
    hear, keys,
    model::{Model, Page, Pane, Prompt, Wish},
    text_of,
};
use crate::out::Style;

const START: Time = Time::from_millis(1_000);

fn overview() -> Overview {
    let node = |id: &str, host: &str, state: serde_json::Value, cpu: u8| {
        json!({"node": id, "hostname": host, "state": state, "cpu_percent": cpu, "memory_percent": 40, "network_percent": 4,
            "psi_percent": 0, "reserved_cpu_millis": 1200, "cpu_millis": 4000, "reserved_memory_bytes": 0,
            "memory_bytes": 1 << 30, "replicas": 9, "lease": "live", "lease_age_ms": 120})
    };
    let service = |id: &str, name: &str, conclusion: &str, rule: &str, cpu: u8| {
        json!({"service": id, "name": name, "mode": "replicated", "protected": true, "own": false, "running": 2, "wanted": 2,
            "pending": 0, "cpu_percent": cpu, "cpu_max_percent": cpu, "memory_percent": 30, "cpu_millis": 900,
            "memory_bytes": 1 << 28, "in_flight": 4, "latency_ms": 3.2, "conclusion": conclusion, "rule": rule,
            "observe": false, "paused": false, "labels_invalid": false, "alerts": 0, "action": null, "update": null})
    };
    let value = json!({
        "api_version": "swarmguard/v1", "version": "0.1.0", "at_ms": 1_000_000, "swarm": {"id": "abc", "name": "prod"},
        "coordination": {"leader": "m1", "acts": "m1", "acting": true, "observe": false, "paused": false, "snapshot_age_ms": 300, "balancers": 0},
        "health": {"score": 94, "deductions": []},
        "banner": [{"severity": "warning", "code": "tasks_pending", "text": "1 task of shop_api waits for a node"}],
        "nodes": [node("n1", "m1", json!(["ok", "leader"]), 31), node("n2", "w2", json!(["short_cpu"]), 93)],
        "services": [service("s1", "shop_api", "refuse", "singleton", 88), service("s2", "shop_web", "act", "migrate", 91)],
        "actions": [{"action": "t1", "kind": "migrate", "service": "shop_web", "source": "w2", "target": "m1", "step": "settling",
            "step_ms": 1400, "total_ms": 3000, "waits_for": null, "undone": null}],
        "alerts": [], "last_day": {"moved": 7, "scaled": 0, "undone": 0, "mttr_p90_ms": 5100},
    });
    serde_json::from_value(value).expect("an overview")
}

fn entry(id: u64, code: &str, service: &str, action: Option<&str>) -> Entry {
    let mut entry = Entry::new(Kind::Action, code, format!("{code} happened"));
    (entry.id, entry.at_ms, entry.service_name, entry.action) =
        (id, id * 1_000, Some(service.into()), action.map(Into::into));
    entry
}

fn model(write: bool) -> Model {
    let style = Style { colour: false, terminal: true, unicode: true };
    let mut model = Model::new(style, write, START);
    model.take(overview(), START);
    model.add(entry(1, "successor_healthy", "shop_web", Some("t1")));
    model.add(entry(2, "cooldown", "shop_api", None));
    model
}

fn press(model: &mut Model, code: KeyCode) -> Option<Wish> {
    keys::press(model, KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_in(model: &mut Model, text: &str) {
    for c in text.chars() {
        assert_eq!(press(model, KeyCode::Char(c)), None);
    }
}

fn screen(model: &Model, width: u16, height: u16, now: Time) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
    terminal.draw(|frame| draw::draw(frame, model, now)).expect("drawn");
    text_of(terminal.backend().buffer())
}

fn at_80(model: &Model) -> String {
    screen(model, 80, 24, START)
}

#[test]
fn at_80_by_24_what_matters_is_on_the_screen() {
    let mut model = model(false);
    let services = at_80(&model);
    for wanted in [
        "prod",
        "health 94/100",
        "Acting m1",
        "WARNING 1 task of shop_api",
        "NOW migrate shop_web",
        "2 Services",
        "refused singleton",
        "88%",
        "? keys",
    ] {
        assert!(services.contains(wanted), "{wanted} is missing:\n{services}");
    }
    assert!(services.lines().all(|line| line.chars().count() <= 80), "{services}");
    press(&mut model, KeyCode::Char('1'));
    let nodes = at_80(&model);
    assert!(nodes.contains("w2") && nodes.contains("short cpu") && nodes.contains("1.2/4"), "{nodes}");
    press(&mut model, KeyCode::Char('3'));
    let journal = at_80(&model);
    let (newer, older) = (journal.find("cooldown"), journal.find("successor_healthy"));
    assert!(newer.is_some() && newer < older, "the newest first:\n{journal}");
}

#[test]
fn where_there_is_room_all_panes_are_seen_at_once_and_too_small_is_said() {
    let wide = screen(&model(false), 200, 60, START);
    for wanted in
        [" 1 Nodes", ">2 Services", " 3 Journal", "short cpu", "IN-FLIGHT", "successor_healthy happened"]
    {
        assert!(wide.contains(wanted), "{wanted} is missing:\n{wide}");
    }
    assert!(screen(&model(false), 60, 16, START).contains("shop_api"));
    assert!(screen(&model(false), 59, 16, START).contains("60x16 at least"));
}

#[test]
fn without_unicode_nothing_but_ascii_is_drawn() {
    let mut model = model(true);
    model.style.unicode = false;
    model.add(entry(3, "näher", "shop_web", Some("t1")));
    for _ in 0..3 {
        press(&mut model, KeyCode::Tab);
        assert!(at_80(&model).is_ascii());
    }
    assert!(screen(&model, 200, 60, START).is_ascii());
    press(&mut model, KeyCode::Char('2'));
    press(&mut model, KeyCode::Char('m'));
    assert!(at_80(&model).is_ascii() || at_80(&model).contains("asking"), "{}", at_80(&model));
}

#[test]
fn rows_are_filtered_sorted_and_looked_at_closely() {
    let mut model = model(false);
    press(&mut model, KeyCode::Char('/'));
    type_in(&mut model, "rule:migrate");
    press(&mut model, KeyCode::Enter);
    let names = |model: &Model| {
        model.listing(Pane::Services).rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&model), ["shop_web"]);
    press(&mut model, KeyCode::Esc);
    assert_eq!(names(&model), ["shop_api", "shop_web"]);
    // Its fourth column is CPU.
    for _ in 0..4 {
        press(&mut model, KeyCode::Char('s'));
    }
    assert_eq!(
        (names(&model), model.message.as_deref()),
        (vec!["shop_web".into(), "shop_api".into()], Some("sorted by CPU"))
    );
    press(&mut model, KeyCode::Enter);
    assert_eq!(model.pages, [Page::Service("shop_web".into())]);
    assert!(at_80(&model).contains("Service shop_web"));
    press(&mut model, KeyCode::Esc);
    press(&mut model, KeyCode::Char('3'));
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Enter);
    assert_eq!(model.pages, [Page::Action("t1".into())]);
    assert!(at_80(&model).contains("successor_healthy happened"));
}

#[test]
fn nothing_is_changed_without_write_a_plan_and_the_word_yes() {
    let mut reader = model(false);
    assert_eq!(press(&mut reader, KeyCode::Char('m')), None);
    assert!(reader.message.is_some_and(|message| message.contains("--write")));

    let mut model = model(true);
    let Some(Wish::Plan(change)) = press(&mut model, KeyCode::Char('m')) else {
        panic!("a plan is asked for")
    };
    assert_eq!((change.command, &change.body), ("migrate", &json!({"service": "shop_api"})));
    type_in(&mut model, "yes");
    assert_eq!(press(&mut model, KeyCode::Enter), None, "before the plan is known");
    press(&mut model, KeyCode::Char('m'));
    hear(&mut model, News::Planned(Ok("shop_api moves from w2 to m1".into())));
    assert!(at_80(&model).contains("shop_api moves from w2 to m1"), "{}", at_80(&model));
    type_in(&mut model, "y");
    assert_eq!(press(&mut model, KeyCode::Enter), None, "y is not yes");
    press(&mut model, KeyCode::Char('m'));
    hear(&mut model, News::Planned(Ok("shop_api moves".into())));
    type_in(&mut model, "yes");
    assert_eq!(press(&mut model, KeyCode::Enter), Some(Wish::Make(change)));

    press(&mut model, KeyCode::Char('m'));
    hear(&mut model, News::Planned(Err("it has a volume (local_volumes)".into())));
    assert!(model.prompt.is_none() && at_80(&model).contains("local_volumes"));
    model.pane = Pane::Journal;
    assert_eq!(press(&mut model, KeyCode::Char('d')), None);
    assert!(!matches!(model.prompt, Some(Prompt::Confirm { .. })));
}

#[test]
fn what_is_old_is_said_and_what_is_frozen_stays() {
    let mut model = model(false);
    model.trouble = Some("the coordinator went away".into());
    let later = Time::from_millis(15_000);
    assert!(screen(&model, 100, 24, later).contains("STALE 14s: the coordinator went away"));
    model.take_unchanged(later);
    let overview = model.overview.as_ref().expect("kept");
    assert_eq!(
        (overview.actions[0].step_ms, overview.nodes[0].lease_age_ms),
        (15_400, Some(14_120)),
        "ages go on"
    );
    press(&mut model, KeyCode::Char(' '));
    let mut other = super::tests::overview();
    other.health.score = 12;
    model.take(other, later);
    assert!(at_80(&model).contains("health 94/100") && at_80(&model).contains("FROZEN"));
}
