//! `swarmguard top`: the swarm in a terminal, once a second. Nothing is changed without `--write`. Off a terminal it is
//! one picture.

pub mod draw;
pub mod feed;
pub mod keys;
pub mod model;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc, time::Duration};

use crossterm::{
    event::{Event, EventStream},
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use futures_util::StreamExt as _;
use ratatui::{
    Terminal,
    backend::{Backend, CrosstermBackend, TestBackend},
    buffer::Buffer,
};
use swarmguard_runtime::clock;
use tokio::sync::{mpsc, watch};

use crate::{
    coordinator::Coordinator,
    failure::{Exit, Failure, Outcome},
    session::Session,
};
use feed::News;
use model::{Change, Model, Prompt, Wish};

/// News that wait to be shown.
const MAX_NEWS: usize = 256;
/// The screen is drawn anew at least so often, so that ages and staleness are seen.
const TICK: Duration = Duration::from_millis(500);

/// Runs until the user leaves.
pub async fn top(session: &Session, every: Duration, write: bool) -> Outcome<Exit> {
    let coordinator = session.coordinator().await?;
    if !session.style.terminal {
        return picture(session, coordinator).await;
    }
    let failed = |error: io::Error| Failure::failed(format!("the terminal cannot be used: {error}"));
    // The first answer comes before the screen is taken, so that an error stays readable.
    let model = first(session, coordinator, write).await?;
    enable_raw_mode().map_err(failed)?;
    let _back = Back;
    execute!(io::stdout(), EnterAlternateScreen).map_err(failed)?;
    let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(failed)?;
    run(&mut terminal, Arc::clone(coordinator), model, every).await.map_err(failed)?;
    Ok(Exit::Done)
}

/// Gives the terminal back, however we end.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, crossterm::cursor::Show);
        let _ = disable_raw_mode();
    }
}

async fn first(session: &Session, coordinator: &Coordinator, write: bool) -> Outcome<Model> {
    let (overview, entries) = feed::once(coordinator).await?;
    let mut model = Model::new(session.style, write, clock::now());
    model.take(overview, clock::now());
    entries.into_iter().for_each(|entry| model.add(entry));
    Ok(model)
}

async fn picture(session: &Session, coordinator: &Coordinator) -> Outcome<Exit> {
    let size =
        |name: &str, usual: u16| session.env.get(name).and_then(|size| size.parse().ok()).unwrap_or(usual);
    let (width, height) = (size("COLUMNS", 80).max(draw::LEAST.0), size("LINES", 24).max(draw::LEAST.1));
    let model = first(session, coordinator, false).await?;
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("cannot draw: {error}"));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).map_err(|error| failed(&error))?;
    terminal.draw(|frame| draw::draw(frame, &model, clock::now())).map_err(|error| failed(&error))?;
    session.print(&text_of(terminal.backend().buffer()))?;
    Ok(Exit::Done)
}

/// A screen as text.
pub fn text_of(buffer: &Buffer) -> String {
    let area = buffer.area;
    let mut text = String::new();
    for y in 0..area.height {
        let line: String = (0..area.width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

async fn run<B: Backend<Error = io::Error>>(
    terminal: &mut Terminal<B>,
    coordinator: Arc<Coordinator>,
    mut model: Model,
    every: Duration,
) -> io::Result<()> {
    let (tell, mut news) = mpsc::channel(MAX_NEWS);
    let (look, looked_at) = watch::channel(None);
    let asking = tokio::spawn(feed::ask(Arc::clone(&coordinator), every, looked_at, tell.clone()));
    let following = tokio::spawn(feed::follow(Arc::clone(&coordinator), tell.clone()));
    let mut keyboard = EventStream::new();
    let ended = loop {
        let drawn = terminal.draw(|frame| draw::draw(frame, &model, clock::now()))?;
        let wish = tokio::select! {
            event = keyboard.next() => match event {
                Some(Ok(Event::Key(key))) => keys::press(&mut model, key),
                Some(Ok(_)) => None,
                Some(Err(error)) => break Err(error),
                None => Some(Wish::Quit),
            },
            Some(first) = news.recv() => {
                hear(&mut model, first);
                while let Ok(more) = news.try_recv() {
                    hear(&mut model, more);
                }
                None
            }
            () = tokio::time::sleep(TICK) => None,
        };
        look.send_if_modified(|page| {
            let changed = page.as_ref() != model.pages.last();
            *page = model.pages.last().cloned();
            changed
        });
        match wish {
            None => {}
            Some(Wish::Quit) => break Ok(()),
            Some(Wish::Save) => model.message = Some(save(drawn.buffer)),
            Some(Wish::Plan(change)) => spawn(&coordinator, &tell, change, false),
            Some(Wish::Make(change)) => spawn(&coordinator, &tell, change, true),
        }
    };
    asking.abort();
    following.abort();
    ended
}

fn spawn(coordinator: &Arc<Coordinator>, tell: &mpsc::Sender<News>, change: Change, really: bool) {
    let (coordinator, tell) = (Arc::clone(coordinator), tell.clone());
    tokio::spawn(async move {
        let came = if really {
            feed::make(&coordinator, &change).await
        } else {
            feed::plan(&coordinator, &change).await
        };
        let _ = tell.send(came).await;
    });
}

/// Takes news in.
pub fn hear(model: &mut Model, news: News) {
    let now = clock::now();
    match news {
        News::Overview(overview) => model.take(*overview, now),
        News::Unchanged => model.take_unchanged(now),
        News::Trouble(why) => model.trouble = Some(why),
        News::Entry(entry) => model.add(*entry),
        News::Detail(page, containers, explanation) => {
            if model.pages.last() == Some(&page) && !model.frozen {
                model.containers = containers;
                model.explanation = explanation.map(|found| *found);
            }
        }
        News::Planned(answer) => match (answer, &mut model.prompt) {
            (Ok(text), Some(Prompt::Confirm { plan, .. })) => *plan = Some(text),
            (Err(why), prompt @ Some(Prompt::Confirm { .. })) => {
                *prompt = None;
                model.message = Some(why);
            }
            _ => {}
        },
        News::Made(Ok(text) | Err(text)) => model.message = Some(text),
    }
}

fn save(buffer: &Buffer) -> String {
    let name = format!("swarmguard-top-{}.txt", clock::wall_ms() / 1_000);
    match std::fs::write(&name, text_of(buffer)) {
        Ok(()) => format!("written to {name}"),
        Err(error) => format!("{name} cannot be written: {error}"),
    }
}
