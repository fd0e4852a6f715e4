//! Rows with columns: filtered, sorted, and written as a table or for programs.

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::{Format, Style, Tone, clean, document, for_programs};
use crate::failure::{Failure, Outcome};

/// Longest cell without `--no-trunc`, in columns of the terminal.
const MAX_CELL: usize = 60;

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading, in capitals; also its name in `--sort` and `--filter`.
    pub name: &'static str,
    right: bool,
    wide: bool,
}

impl Column {
    /// Text, from the left.
    pub const fn text(name: &'static str) -> Self {
        Self { name, right: false, wide: false }
    }

    /// A figure, from the right.
    pub const fn figure(name: &'static str) -> Self {
        Self { name, right: true, wide: false }
    }

    /// Whether it stands at the right.
    pub const fn is_right(&self) -> bool {
        self.right
    }

    /// Only in the wide table.
    #[must_use]
    pub const fn wide(mut self) -> Self {
        self.wide = true;
        self
    }
}

/// What stands in a column of a row.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    tone: Tone,
    order: Option<f64>,
    whole: bool,
}

impl Cell {
    /// Sorted as text.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self { text: clean(text.as_ref()), tone: Tone::Plain, order: None, whole: false }
    }

    /// Sorted as a figure; the unknown last.
    pub fn figure(text: impl AsRef<str>, order: Option<f64>) -> Self {
        Self { order: order.or(Some(f64::NEG_INFINITY)), ..Self::new(text) }
    }

    /// What it says.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How it is to be looked at.
    pub const fn get_tone(&self) -> Tone {
        self.tone
    }

    /// Coloured.
    #[must_use]
    pub fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// Never cut: errors and reasons.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }
}

/// One thing.
#[derive(Clone, Debug)]
pub struct Row {
    /// What `-o name` and `-q` print.
    pub name: String,
    /// One for each column.
    pub cells: Vec<Cell>,
    /// As programs get it.
    pub value: Value,
}

/// Things of one kind.
#[derive(Clone, Debug)]
pub struct Listing {
    /// For programs, such as `NodeList`.
    pub kind: &'static str,
    /// Columns.
    pub columns: Vec<Column>,
    /// Rows, in their usual order.
    pub rows: Vec<Row>,
}

/// How a listing is wanted.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How it is written.
    pub format: Format,
    /// Names only.
    pub quiet: bool,
    /// `column=value`, `column!=value`, `column~part`; all must hold.
    pub filters: Vec<String>,
    /// A column; figures from the highest, text from A; `-` in front turns it round.
    pub sort: Option<String>,
    /// Nothing is cut.
    pub no_trunc: bool,
}

impl Listing {
    /// As text.
    ///
    /// # Errors
    /// When a filter or the sort names no column.
    pub fn render(mut self, view: &View, style: Style) -> Outcome<String> {
        for filter in &view.filters {
            self.keep(filter)?;
        }
        if let Some(sort) = &view.sort {
            self.sort(sort)?;
        }
        if view.quiet || view.format == Format::Name {
            return Ok(self.rows.iter().map(|row| format!("{}\n", clean(&row.name))).collect());
        }
        let values = Value::Array(self.rows.iter().map(|row| row.value.clone()).collect());
        match for_programs(view.format, &document(self.kind, values))? {
            Some(text) => Ok(text),
            None => Ok(self.table(view, style)),
        }
    }

    fn column(&self, name: &str, option: &str) -> Outcome<usize> {
        let found = self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let known: Vec<String> = self.columns.iter().map(|column| column.name.to_lowercase()).collect();
            Failure::usage(format!("{option}: there is no column {name:?} here"))
                .hint(format!("columns are: {}", known.join(", ")))
        })
    }

    fn keep(&mut self, filter: &str) -> Outcome {
        let cut = |sign: &str| filter.split_once(sign);
        let (name, value, holds): (_, _, fn(&str, &str) -> bool) = match (cut("!="), cut("~"), cut("=")) {
            (Some((name, value)), ..) => (name, value, |text, value| !text.eq_ignore_ascii_case(value)),
            (None, Some((name, value)), equal)
                if equal.is_none_or(|(before, _)| before.len() > name.len()) =>
            {
                (name, value, |text, value| text.to_lowercase().contains(&value.to_lowercase()))
            }
            (None, _, Some((name, value))) => (name, value, |text, value| text.eq_ignore_ascii_case(value)),
            _ => {
                return Err(Failure::usage(format!("--filter: {filter:?} is no filter"))
                    .hint("column=value, column!=value, or column~part of it"));
            }
        };
        let at = self.column(name.trim(), "--filter")?;
        self.rows.retain(|row| row.cells.get(at).is_some_and(|cell| holds(&cell.text, value.trim())));
        Ok(())
    }

    fn sort(&mut self, sort: &str) -> Outcome {
        let (name, turned) = match sort.strip_prefix('-') {
            Some(name) => (name, true),
            None => (sort, false),
        };
        let at = self.column(name, "--sort")?;
        self.sort_by(at, turned);
        Ok(())
    }

    /// Sorts by the column at this place.
    pub fn sort_by(&mut self, at: usize, turned: bool) {
        self.rows.sort_by(|one, other| {
            let (Some(one), Some(other)) = (one.cells.get(at), other.cells.get(at)) else {
                return std::cmp::Ordering::Equal;
            };
            let order = match (one.order, other.order) {
                (Some(one), Some(other)) => other.total_cmp(&one),
                _ => one.text.cmp(&other.text),
            };
            if turned { order.reverse() } else { order }
        });
    }

    /// Keeps rows that have a word: `column:part`, or a part of any column. A column that is not here keeps all.
    pub fn keep_word(&mut self, word: &str) {
        let word = word.to_lowercase();
        let (column, part) = match word.split_once(':') {
            // What users call the verdict.
            Some(("rule", part)) => (Some(["VERDICT", "RULE"]), part),
            Some((name, part)) => {
                let found = self.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
                let Some(found) = found else { return };
                (Some([found.name; 2]), part)
            }
            None => (None, word.as_str()),
        };
        let columns = &self.columns;
        self.rows.retain(|row| {
            let mut cells = columns.iter().zip(&row.cells);
            cells.any(|(at, cell)| {
                column.is_none_or(|names| names.contains(&at.name)) && cell.text.to_lowercase().contains(part)
            })
        });
    }

    fn table(&self, view: &View, style: Style) -> String {
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|at| view.format == Format::Wide || !self.columns[*at].wide)
            .collect();
        let cell = |row: &Row, at: usize| match row.cells.get(at) {
            Some(cell) if view.no_trunc || cell.whole => cell.clone(),
            Some(cell) => Cell { text: shorten(&cell.text, MAX_CELL, style.unicode), ..cell.clone() },
            None => Cell::new(""),
        };
        let rows: Vec<Vec<Cell>> =
            self.rows.iter().map(|row| shown.iter().map(|at| cell(row, *at)).collect()).collect();
        let widths: Vec<usize> = shown
            .iter()
            .enumerate()
            .map(|(place, at)| {
                let longest = rows.iter().map(|row| row[place].text.width()).max().unwrap_or(0);
                longest.max(self.columns[*at].name.width())
            })
            .collect();
        let mut text = String::new();
        let mut line = |cells: Vec<(&str, Tone)>| {
            let mut line = String::new();
            for (place, (content, tone)) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[place].saturating_sub(content.width()));
                let painted = style.paint(*tone, content);
                if place > 0 {
                    line.push_str("  ");
                }
                if self.columns[shown[place]].right {
                    line.push_str(&pad);
                    line.push_str(&painted);
                } else {
                    line.push_str(&painted);
                    line.push_str(&pad);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        line(shown.iter().map(|at| (self.columns[*at].name, Tone::Head)).collect());
        for row in &rows {
            line(row.iter().map(|cell| (cell.text.as_str(), cell.tone)).collect());
        }
        text
    }
}

/// Cut to so many columns, with a sign where something is missing.
pub fn shorten(text: &str, most: usize, unicode: bool) -> String {
    if text.width() <= most {
        return text.into();
    }
    let sign = if unicode { "…" } else { "~" };
    let mut short = String::new();
    for c in text.chars() {
        if short.width() + unicode_width::UnicodeWidthChar::width(c).unwrap_or(0) + 1 > most {
            break;
        }
        short.push(c);
    }
    short + sign
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failure::Exit;

    const PLAIN: Style = Style { colour: false, terminal: false, unicode: true };

    fn listing() -> Listing {
        let row = |name: &str, cpu: Option<u8>, note: &str| Row {
            name: name.into(),
            cells: vec![
                Cell::new(name),
                Cell::figure(super::super::percent(cpu), cpu.map(f64::from)),
                Cell::new(note),
            ],
            value: json!({"name": name, "cpu_percent": cpu}),
        };
        let columns = vec![Column::text("NODE"), Column::figure("CPU"), Column::text("NOTE").wide()];
        Listing {
            kind: "NodeList",
            columns,
            rows: vec![row("w2", Some(9), "ä"), row("m1", Some(31), ""), row("w10", None, "x")],
        }
    }

    fn render(view: View) -> String {
        listing().render(&view, PLAIN).expect("sensible")
    }

    #[test]
    fn tables_are_aligned_and_wide_ones_show_more() {
        assert_eq!(render(View::default()), "NODE  CPU\nw2     9%\nm1    31%\nw10     -\n");
        let wide = render(View { format: Format::Wide, ..View::default() });
        assert_eq!(wide, "NODE  CPU  NOTE\nw2     9%  ä\nm1    31%\nw10     -  x\n");
    }

    #[test]
    fn rows_are_sorted_filtered_and_named() {
        let names = |view: View| render(View { quiet: true, ..view });
        assert_eq!(names(View { sort: Some("cpu".into()), ..View::default() }), "m1\nw2\nw10\n");
        assert_eq!(names(View { sort: Some("-node".into()), ..View::default() }), "w2\nw10\nm1\n");
        assert_eq!(
            names(View { filters: vec!["node~W".into(), "cpu!=-".into()], ..View::default() }),
            "w2\n"
        );
        assert_eq!(names(View { filters: vec!["node=m1".into()], ..View::default() }), "m1\n");
        let json: Value =
            serde_json::from_str(&render(View { format: Format::Json, ..View::default() })).expect("JSON");
        assert_eq!(json["items"][1]["name"], "m1");
    }

    #[test]
    fn wrong_columns_and_filters_are_named() {
        for view in [
            View { sort: Some("size".into()), ..View::default() },
            View { filters: vec!["size=1".into()], ..View::default() },
            View { filters: vec!["node".into()], ..View::default() },
        ] {
            let failure = listing().render(&view, PLAIN).expect_err("senseless");
            assert!(failure.exit == Exit::Usage && failure.hint.is_some(), "{failure}");
        }
    }

    #[test]
    fn long_texts_are_cut_by_what_they_take_on_the_screen() {
        assert_eq!(shorten("日本語テキスト", 7, true), "日本語…");
        assert_eq!(shorten("abcdef", 4, false), "abc~");
        assert_eq!(shorten("abc", 3, true), "abc");
    }
}
