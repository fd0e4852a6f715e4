//! What keys do. Those that change the swarm only with `--write`, and only after the word `yes` was typed under what the
//! coordinator says it would do.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};

use super::model::{Change, Model, Page, Pane, Prompt, Wish};

/// Keys and what they do, for the help page.
pub const HELP: [(&str, &str); 14] = [
    ("up down j k", "move; PgUp PgDn g G by more"),
    ("left right h l Tab 1 2 3", "nodes, services, journal"),
    ("Enter", "look closer: service, node, or the action of an entry"),
    ("Esc", "back; takes the filter away"),
    ("/", "filter: words, or column:word such as node:w2 rule:cooldown"),
    ("s S", "sort by the next column; the other way round"),
    ("space", "freeze"),
    ("w", "write the screen to a file"),
    ("m", "migrate the service (with --write)"),
    ("p", "pause or resume the service (with --write)"),
    ("d", "drain the node (with --write)"),
    ("c", "cancel what is under way (with --write)"),
    ("?", "this page"),
    ("q", "quit"),
];

/// Takes a key in.
pub fn press(model: &mut Model, key: KeyEvent) -> Option<Wish> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return Some(Wish::Quit);
    }
    if let Some(prompt) = model.prompt.take() {
        return answer(model, prompt, key.code);
    }
    model.message = None;
    match key.code {
        KeyCode::Char('q') => return Some(Wish::Quit),
        KeyCode::Esc | KeyCode::Backspace => {
            if model.pages.pop().is_none() {
                model.filter.clear();
            }
            model.containers.clear();
            model.explanation = None;
        }
        KeyCode::Char('?') => model.pages.push(Page::Help),
        KeyCode::Char(' ') => model.frozen = !model.frozen,
        KeyCode::Char('w') => return Some(Wish::Save),
        KeyCode::Char('/') => model.prompt = Some(Prompt::Filter(model.filter.clone())),
        KeyCode::Char(c @ ('m' | 'p' | 'd' | 'c')) => return change(model, c),
        _ if !model.pages.is_empty() => {}
        KeyCode::Enter => look_closer(model),
        KeyCode::Char(c @ ('s' | 'S')) => sort(model, c == 'S'),
        KeyCode::Char('1') => model.pane = Pane::Nodes,
        KeyCode::Char('2') => model.pane = Pane::Services,
        KeyCode::Char('3') => model.pane = Pane::Journal,
        KeyCode::Left | KeyCode::Char('h') | KeyCode::BackTab => turn(model, 2),
        KeyCode::Right | KeyCode::Char('l') | KeyCode::Tab => turn(model, 1),
        code => scroll(model, code),
    }
    None
}

fn turn(model: &mut Model, by: usize) {
    model.pane = Pane::ALL[(model.pane.index() + by) % Pane::ALL.len()];
}

fn scroll(model: &mut Model, code: KeyCode) {
    let last = model.listing(model.pane).rows.len().saturating_sub(1);
    let row = &mut model.places[model.pane.index()].row;
    *row = match code {
        KeyCode::Up | KeyCode::Char('k') => row.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => *row + 1,
        KeyCode::PageUp => row.saturating_sub(10),
        KeyCode::PageDown => *row + 10,
        KeyCode::Home | KeyCode::Char('g') => 0,
        KeyCode::End | KeyCode::Char('G') => last,
        _ => *row,
    }
    .min(last);
}

fn sort(model: &mut Model, turn: bool) {
    let columns = model.listing(model.pane).columns.len();
    let place = &mut model.places[model.pane.index()];
    if turn {
        place.turned = !place.turned;
        return;
    }
    place.sort = match place.sort {
        None => Some(0),
        Some(last) if last + 1 >= columns => None,
        Some(column) => Some(column + 1),
    };
    let name = place.sort.map(|column| model.listing(model.pane).columns[column].name);
    model.message = Some(name.map_or_else(|| "usual order".into(), |name| format!("sorted by {name}")));
}

fn look_closer(model: &mut Model) {
    let Some(row) = model.selected() else { return };
    match model.pane {
        Pane::Nodes => model.pages.push(Page::Node(row.name)),
        Pane::Services => model.pages.push(Page::Service(row.name)),
        Pane::Journal if row.name.is_empty() => {
            model.message = Some("this entry belongs to no action".into());
        }
        Pane::Journal => model.pages.push(Page::Action(row.name)),
    }
}

/// The service or node that a change is about: what is looked at closely, else what stands under the cursor.
fn subject(model: &Model) -> Option<(bool, String)> {
    match model.pages.last() {
        Some(Page::Service(name)) => Some((true, name.clone())),
        Some(Page::Node(name)) => Some((false, name.clone())),
        Some(_) => None,
        None => match model.pane {
            Pane::Services => Some((true, model.selected()?.name)),
            Pane::Nodes => Some((false, model.selected()?.name)),
            Pane::Journal => None,
        },
    }
}

fn change(model: &mut Model, key: char) -> Option<Wish> {
    if !model.write {
        model.message = Some("read-only: start `swarmguard top --write` to change anything".into());
        return None;
    }
    let found = subject(model);
    let paused = |model: &Model, name: &str| {
        let services = model.overview.iter().flat_map(|overview| &overview.services);
        services.into_iter().any(|service| service.name == name && service.paused)
    };
    let of = |command, body: Value| Some(Change { command, body });
    let change = match (key, found) {
        ('m', Some((true, name))) => of("migrate", json!({"service": name})),
        ('p', Some((true, name))) => {
            of(if paused(model, &name) { "resume" } else { "pause" }, json!({"service": name}))
        }
        ('d', Some((false, name))) => of("drain", json!({"node": name})),
        ('c', Some((true, name))) => of("cancel", json!({"service": name})),
        ('c', Some((false, name))) => of("cancel", json!({"node": name})),
        _ => None,
    };
    let Some(change) = change else {
        let what = if key == 'd' { "a node" } else { "a service" };
        model.message = Some(format!("{key}: choose {what} first"));
        return None;
    };
    model.prompt = Some(Prompt::Confirm { plan: None, change: change.clone(), typed: String::new() });
    Some(Wish::Plan(change))
}

fn answer(model: &mut Model, prompt: Prompt, code: KeyCode) -> Option<Wish> {
    match prompt {
        Prompt::Filter(mut text) => match code {
            KeyCode::Enter => model.filter = text,
            KeyCode::Esc => {}
            code => {
                edit(&mut text, code);
                model.filter.clone_from(&text);
                model.prompt = Some(Prompt::Filter(text));
            }
        },
        Prompt::Confirm { plan, change, mut typed } => match code {
            KeyCode::Esc => model.message = Some("nothing was changed".into()),
            KeyCode::Enter if plan.is_some() && typed == "yes" => return Some(Wish::Make(change)),
            KeyCode::Enter => {
                model.message = Some("nothing was changed: that was not yes".into());
            }
            code => {
                edit(&mut typed, code);
                model.prompt = Some(Prompt::Confirm { plan, change, typed });
            }
        },
    }
    None
}

fn edit(text: &mut String, code: KeyCode) {
    match code {
        KeyCode::Char(c) => drop(Model::typed(text, c)),
        KeyCode::Backspace => drop(text.pop()),
        _ => {}
    }
}
