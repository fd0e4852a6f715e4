//! How it looks. At 80x24 the three panes are tabs; where there is room they stand under one another. Columns go by
//! priority: those that come last in a pane's list leave first.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style as Look},
    symbols::border,
    text::{Line, Span},
    widgets::{Block, Borders, Clear, Paragraph, Wrap},
};
use swarmguard_common::{api::Overview, time::Time};
use unicode_width::UnicodeWidthStr as _;

use super::{
    keys::HELP,
    model::{Model, Page, Pane, Prompt},
};
use crate::{
    commands::{explain, lists, status},
    out::{Listing, Style, Tone, age, clean, table::shorten},
};

/// Smallest screen.
pub const LEAST: (u16, u16) = (60, 16);
/// From here on all panes are shown at once.
const ROOMY: (u16, u16) = (100, 32);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, model: &Model, now: Time) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("{}x{} is too small: {}x{} at least", area.width, area.height, LEAST.0, LEAST.1);
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let banners = model.overview.as_ref().map_or(0, |overview| overview.banner.len().min(2));
    let head = 1 + u16::try_from(banners).unwrap_or(0);
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(head), Constraint::Min(1), Constraint::Length(1)]).areas(area);
    let stale = model.stale(now);
    let painter = Painter { style: model.style, grey: stale.is_some() };
    draw_head(frame, top, model, painter, now);
    match model.pages.last() {
        Some(page) => draw_page(frame, middle, model, page, painter),
        None => draw_panes(frame, middle, model, painter),
    }
    draw_foot(frame, bottom, model, painter);
    if let Some(Prompt::Confirm { plan, change, typed }) = &model.prompt {
        let plan = plan.as_deref().unwrap_or("asking what it would do …");
        draw_question(frame, middle, painter, change.command, plan, typed);
    }
}

#[derive(Clone, Copy)]
struct Painter {
    style: Style,
    grey: bool,
}

impl Painter {
    fn look(self, tone: Tone) -> Look {
        let plain = Look::default();
        if self.grey {
            return if self.style.colour {
                plain.fg(Color::DarkGray)
            } else {
                plain.add_modifier(Modifier::DIM)
            };
        }
        match tone {
            Tone::Plain => plain,
            Tone::Head => plain.add_modifier(Modifier::BOLD),
            Tone::Dim if !self.style.colour => plain,
            Tone::Dim => plain.fg(Color::DarkGray),
            Tone::Good if self.style.colour => plain.fg(Color::Green),
            Tone::Warn if self.style.colour => plain.fg(Color::Yellow),
            Tone::Bad if self.style.colour => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Good | Tone::Warn => plain,
            Tone::Bad => plain.add_modifier(Modifier::BOLD),
        }
    }

    fn span(self, tone: Tone, text: impl Into<String>) -> Span<'static> {
        Span::styled(self.ascii(text.into()), self.look(tone))
    }

    /// Without what the terminal may not have.
    fn ascii(self, text: String) -> String {
        if self.style.unicode || text.is_ascii() {
            return text;
        }
        text.chars()
            .map(|c| match c {
                '…' => '~',
                c if c.is_ascii() => c,
                _ => '?',
            })
            .collect()
    }

    fn block(self, title: &str, active: bool) -> Block<'static> {
        const ASCII: border::Set<'_> = border::Set {
            top_left: "+",
            top_right: "+",
            bottom_left: "+",
            bottom_right: "+",
            vertical_left: "|",
            vertical_right: "|",
            horizontal_top: "-",
            horizontal_bottom: "-",
        };
        let set = if self.style.unicode { border::PLAIN } else { ASCII };
        let look = if active { self.look(Tone::Head) } else { self.look(Tone::Dim) };
        Block::default()
            .borders(Borders::TOP)
            .border_set(set)
            .border_style(self.look(Tone::Dim))
            .title(Span::styled(format!(" {title} "), look))
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, model: &Model, painter: Painter, now: Time) {
    let Some(overview) = &model.overview else {
        let text = model.trouble.clone().unwrap_or_else(|| "asking the coordinator …".into());
        frame.render_widget(Paragraph::new(painter.ascii(text)), area);
        return;
    };
    let score = overview.health.score;
    let protected = overview.services.iter().filter(|service| service.protected).count();
    let acting = Style { colour: false, ..model.style };
    let quiet =
        overview.coordination.observe || overview.coordination.paused || overview.coordination.acts.is_none();
    let mut spans = vec![
        painter.span(Tone::Head, format!("{}  ", clean(status::swarm_name(overview)))),
        painter.span(status::score_tone(score), format!("health {score}/100")),
        painter.span(Tone::Plain, format!("  {} nodes  {protected} protected  ", overview.nodes.len())),
        painter.span(if quiet { Tone::Warn } else { Tone::Plain }, status::acting(overview, acting)),
    ];
    if let Some(ms) = model.stale(now) {
        let why = model.trouble.as_deref().unwrap_or("nothing new came");
        spans.push(Span::styled(
            format!("  STALE {}: {why}", age(ms)),
            Look::default().add_modifier(Modifier::REVERSED),
        ));
    } else if model.frozen {
        spans.push(Span::styled("  FROZEN ", Look::default().add_modifier(Modifier::REVERSED)));
    } else if let Some(action) = overview.actions.first() {
        spans.push(painter.span(Tone::Warn, format!("  NOW {}", status::action_text(action))));
    }
    let mut lines = vec![Line::from(spans)];
    for banner in overview.banner.iter().take(usize::from(area.height.saturating_sub(1))) {
        let (tone, word) = status::severity(banner.severity);
        lines.push(Line::from(vec![
            painter.span(tone, format!("{word} ")),
            painter.span(Tone::Plain, clean(&banner.text)),
        ]));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_panes(frame: &mut Frame<'_>, area: Rect, model: &Model, painter: Painter) {
    let whole = frame.area();
    if whole.width < ROOMY.0 || whole.height < ROOMY.1 {
        let [tabs, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
        let mut spans = Vec::new();
        for pane in Pane::ALL {
            let text = format!(" {} {} ", pane.index() + 1, pane.title());
            let look = if pane == model.pane {
                Look::default().add_modifier(Modifier::REVERSED)
            } else {
                painter.look(Tone::Dim)
            };
            spans.push(Span::styled(text, look));
            spans.push(Span::raw(" "));
        }
        if !model.filter.is_empty() {
            spans.push(painter.span(Tone::Warn, format!(" filter: {}", model.filter)));
        }
        frame.render_widget(Line::from(spans), tabs);
        draw_list(frame, body, model, model.pane, painter);
        return;
    }
    let nodes = u16::try_from(model.listing(Pane::Nodes).rows.len()).unwrap_or(u16::MAX);
    let [first, second, third] = Layout::vertical([
        Constraint::Length(nodes.saturating_add(3).min(area.height / 3)),
        Constraint::Fill(3),
        Constraint::Fill(2),
    ])
    .areas(area);
    for (pane, area) in Pane::ALL.into_iter().zip([first, second, third]) {
        let active = pane == model.pane;
        let mark = if active { ">" } else { " " };
        let filter =
            if model.filter.is_empty() { String::new() } else { format!("  filter: {}", model.filter) };
        let block = painter.block(&format!("{mark}{} {}{filter}", pane.index() + 1, pane.title()), active);
        let inner = block.inner(area);
        frame.render_widget(block, area);
        draw_list(frame, inner, model, pane, painter);
    }
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, model: &Model, pane: Pane, painter: Painter) {
    let listing = model.listing(pane);
    let cursor = (pane == model.pane).then(|| model.places[pane.index()].row);
    let empty = match pane {
        Pane::Journal => "nothing has happened since you came",
        _ => "nothing matches",
    };
    draw_rows(frame, area, &listing, cursor, painter, empty);
}

fn draw_rows(
    frame: &mut Frame<'_>,
    area: Rect,
    listing: &Listing,
    cursor: Option<usize>,
    painter: Painter,
    empty: &str,
) {
    let width = usize::from(area.width);
    let shown = fitting(listing, width);
    let height = usize::from(area.height.saturating_sub(1));
    let cursor = cursor.map(|row| row.min(listing.rows.len().saturating_sub(1)));
    let first = cursor.map_or(0, |row| (row + 1).saturating_sub(height));
    let mut lines =
        vec![row_line(&shown, width, painter, |at| (listing.columns[at].name.to_owned(), Tone::Head))];
    for (index, row) in listing.rows.iter().enumerate().skip(first).take(height) {
        let mut line = row_line(&shown, width, painter, |at| {
            row.cells.get(at).map_or_else(Default::default, |cell| (cell.text().to_owned(), cell.get_tone()))
        });
        if Some(index) == cursor {
            line = line.style(Look::default().add_modifier(Modifier::REVERSED));
        }
        lines.push(line);
    }
    if listing.rows.is_empty() {
        lines.push(Line::from(painter.span(Tone::Dim, empty)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

struct Fit {
    at: usize,
    width: usize,
    right: bool,
}

/// The columns that fit, with their widths; the last one takes what is left where it is text.
fn fitting(listing: &Listing, width: usize) -> Vec<Fit> {
    let mut shown: Vec<Fit> = Vec::new();
    let mut used = 0;
    for (at, column) in listing.columns.iter().enumerate() {
        let longest =
            listing.rows.iter().filter_map(|row| row.cells.get(at)).map(|cell| cell.text().width()).max();
        let most = if at + 1 == listing.columns.len() { width } else { 28 };
        let wanted = longest.unwrap_or(0).max(column.name.width()).min(most);
        let gap = if shown.is_empty() { 0 } else { 2 };
        let room = width.saturating_sub(used + gap);
        if wanted > room {
            // Texts may be cut, figures may not.
            if column.is_right() || room < 12 {
                continue;
            }
            shown.push(Fit { at, width: room, right: false });
            break;
        }
        used += gap + wanted;
        shown.push(Fit { at, width: wanted, right: column.is_right() });
    }
    shown
}

fn row_line(
    shown: &[Fit],
    width: usize,
    painter: Painter,
    cell: impl Fn(usize) -> (String, Tone),
) -> Line<'static> {
    let mut spans = Vec::new();
    let mut used = 0;
    for (place, fit) in shown.iter().enumerate() {
        let (text, tone) = cell(fit.at);
        let text = shorten(&painter.ascii(text), fit.width, painter.style.unicode);
        let pad = " ".repeat(fit.width.saturating_sub(text.width()));
        if place > 0 {
            spans.push(Span::raw("  "));
            used += 2;
        }
        used += fit.width;
        let (before, after) = if fit.right { (pad, String::new()) } else { (String::new(), pad) };
        spans.push(Span::raw(before));
        spans.push(painter.span(tone, text));
        spans.push(Span::raw(after));
    }
    spans.push(Span::raw(" ".repeat(width.saturating_sub(used))));
    Line::from(spans)
}

fn draw_page(frame: &mut Frame<'_>, area: Rect, model: &Model, page: &Page, painter: Painter) {
    let Some(overview) = &model.overview else { return };
    match page {
        Page::Help => {
            let block = painter.block("Keys", true);
            let lines: Vec<Line<'_>> = HELP
                .iter()
                .map(|(keys, what)| {
                    Line::from(vec![
                        painter.span(Tone::Head, format!("  {keys:<26}")),
                        painter.span(Tone::Plain, *what),
                    ])
                })
                .collect();
            frame.render_widget(Paragraph::new(lines).block(block), area);
        }
        Page::Service(name) => draw_service(frame, area, model, overview, name, painter),
        Page::Node(name) => {
            let id = overview.nodes.iter().find(|node| node.hostname == *name).map(|node| node.node.clone());
            let here = model.containers.iter().filter(|container| Some(&container.node) == id.as_ref());
            let listing = lists::containers_of(here, overview);
            let block = painter.block(&format!("Node {name}"), true);
            let inner = block.inner(area);
            frame.render_widget(block, area);
            draw_rows(frame, inner, &listing, None, painter, "no replica is reported from here");
        }
        Page::Action(token) => {
            let block = painter.block(&format!("Action {token}"), true);
            let lines: Vec<Line<'_>> = model
                .journal
                .iter()
                .filter(|entry| entry.action.as_ref() == Some(token))
                .map(|entry| {
                    Line::from(painter.span(
                        Tone::Plain,
                        crate::commands::events::text(
                            entry,
                            overview,
                            Style { colour: false, ..model.style },
                        ),
                    ))
                })
                .collect();
            frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), area);
        }
    }
}

fn draw_service(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    overview: &Overview,
    name: &str,
    painter: Painter,
) {
    let listing = lists::containers_of(
        model.containers.iter().filter(|container| container.service_name.as_deref() == Some(name)),
        overview,
    );
    let rows = u16::try_from(listing.rows.len()).unwrap_or(u16::MAX).max(1);
    let [upper, lower] = Layout::vertical([
        Constraint::Length(rows.saturating_add(2).min(area.height / 2)),
        Constraint::Min(4),
    ])
    .areas(area);
    let block = painter.block(&format!("Service {name}"), true);
    let inner = block.inner(upper);
    frame.render_widget(block, upper);
    draw_rows(frame, inner, &listing, None, painter, "no replica is reported");
    let plain = Style { colour: false, ..model.style };
    let mut lines: Vec<Line<'_>> = Vec::new();
    if let Some(explanation) = model.explanation.as_ref().filter(|found| found.name == name) {
        let text = explain::text(explanation, overview, &[], plain);
        lines.extend(text.lines().map(|line| Line::from(painter.span(Tone::Plain, line))));
    }
    let decided =
        model.journal.iter().rev().filter(|entry| entry.service_name.as_deref() == Some(name)).take(20);
    for entry in decided {
        lines
            .push(Line::from(painter.span(Tone::Dim, crate::commands::events::text(entry, overview, plain))));
    }
    let block = painter.block("Why, and what was decided", false);
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), lower);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, model: &Model, painter: Painter) {
    let line = match (&model.prompt, &model.message) {
        (Some(Prompt::Filter(text)), _) => {
            Line::from(vec![painter.span(Tone::Head, "filter: "), Span::raw(format!("{text}_"))])
        }
        (_, Some(message)) => Line::from(painter.span(Tone::Warn, clean(message))),
        _ => {
            let changes = if model.write { "  m p d c change" } else { "" };
            let back = if model.pages.is_empty() { "Enter closer" } else { "Esc back" };
            Line::from(painter.span(
                Tone::Dim,
                format!("{back}  / filter  s sort  space freeze  w write{changes}  ? keys  q quit"),
            ))
        }
    };
    frame.render_widget(line, area);
}

fn draw_question(
    frame: &mut Frame<'_>,
    area: Rect,
    painter: Painter,
    command: &str,
    plan: &str,
    typed: &str,
) {
    let width = area.width.saturating_sub(6).min(76);
    let height = 7.min(area.height);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let lines = vec![
        Line::from(painter.span(Tone::Plain, clean(plan))),
        Line::default(),
        Line::from(vec![
            painter.span(Tone::Head, "type yes to do it, Esc to leave it: "),
            Span::raw(format!("{typed}_")),
        ]),
    ];
    let block = painter.block(command, true).borders(Borders::ALL);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), place);
}
