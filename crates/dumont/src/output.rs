//! What people and scripts see: results on stdout, everything else on stderr.
//!
//! Colours only on a terminal (or where `CLICOLOR_FORCE` asks for them) and never where
//! `NO_COLOR` is set. A closed pipe (`| head`) ends the output, not the program with a
//! backtrace. Names that providers and hosts chose go through [`safe`] before a terminal
//! could obey them.

use crate::badge;
use dumont_core::level::Colour;
use dumont_core::time::Timestamp;
use owo_colors::OwoColorize;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::time::SystemTime;

static COLOUR_OUT: LazyLock<bool> = LazyLock::new(|| colours(std::io::stdout().is_terminal()));
static COLOUR_ERR: LazyLock<bool> = LazyLock::new(|| colours(std::io::stderr().is_terminal()));

fn colours(terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| !v.is_empty() && v != "0");
    let able = terminal && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
    !set("NO_COLOR") && (forced || able)
}

/// Text and the colour it has where there are colours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Styled {
    pub text: String,
    pub colour: Option<Colour>,
}

impl Styled {
    pub fn new(text: impl Into<String>, colour: Colour) -> Self {
        Self {
            text: text.into(),
            colour: Some(colour),
        }
    }

    pub fn plain(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            colour: None,
        }
    }

    fn painted(&self, on: bool) -> String {
        match self.colour {
            Some(colour) if on && !self.text.is_empty() => self
                .text
                .color(owo_colors::XtermColors::from(badge::code(colour)))
                .to_string(),
            _ => self.text.clone(),
        }
    }
}

impl From<String> for Styled {
    fn from(text: String) -> Self {
        Self::plain(text)
    }
}

/// For stdout.
pub fn paint(text: &Styled) -> String {
    text.painted(*COLOUR_OUT)
}

/// For stderr.
pub fn paint_err(text: &Styled) -> String {
    text.painted(*COLOUR_ERR)
}

/// Whether stderr shows colours.
pub fn coloured_err() -> bool {
    *COLOUR_ERR
}

/// Somebody else's text on one line of a terminal: what would move the cursor, change colours
/// or turn the reading direction is shown as its escape.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || turns {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// One line of result on stdout.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .is_err()
    {
        // Nobody reads any more; what was asked for is done or belongs to the server.
        std::process::exit(0);
    }
}

/// One line for the person who waits, on stderr.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The API's own shape, indented.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

fn when(on: bool, text: &str, styled: impl std::fmt::Display) -> String {
    if on { styled.to_string() } else { text.to_owned() }
}

pub fn bold(text: &str) -> String {
    when(*COLOUR_OUT, text, text.bold())
}
pub fn dim(text: &str) -> String {
    when(*COLOUR_OUT, text, text.dimmed())
}
pub fn green(text: &str) -> String {
    when(*COLOUR_OUT, text, text.green())
}
pub fn red(text: &str) -> String {
    when(*COLOUR_OUT, text, text.red())
}
pub fn red_err(text: &str) -> String {
    when(*COLOUR_ERR, text, text.red().bold().to_string())
}
pub fn green_err(text: &str) -> String {
    when(*COLOUR_ERR, text, text.green())
}
pub fn dim_err(text: &str) -> String {
    when(*COLOUR_ERR, text, text.dimmed())
}

/// A borderless table with a bold header. Columns named in `right` are aligned right.
pub fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) {
    for text in table_lines(header, right, rows) {
        line(&text);
    }
}

/// The same with cells that have colours.
pub fn styled_table(header: &[&str], right: &[usize], rows: &[Vec<Styled>]) {
    for text in styled_lines(header, right, rows, *COLOUR_OUT) {
        line(&text);
    }
}

/// The lines of [`table`].
pub fn table_lines(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> Vec<String> {
    let plain = |row: &Vec<String>| row.iter().map(Styled::plain).collect();
    let rows: Vec<Vec<Styled>> = rows.iter().map(plain).collect();
    styled_lines(header, right, &rows, *COLOUR_OUT)
}

/// The lines of [`styled_table`], with colours or without. Every cell is somebody's text, so
/// each goes through [`safe`] here and no table can forget it.
pub fn styled_lines(header: &[&str], right: &[usize], rows: &[Vec<Styled>], colour: bool) -> Vec<String> {
    use comfy_table::{Cell, CellAlignment, Color, Table};
    let cell = |s: &Styled| {
        let cell = Cell::new(safe(&s.text));
        match s.colour {
            Some(c) if colour && !s.text.is_empty() => cell.fg(Color::AnsiValue(badge::code(c))),
            _ => cell,
        }
    };
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).force_no_tty();
    table.style_text_only();
    if colour {
        table.enforce_styling();
    }
    table.set_header(header.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    table.add_rows(rows.iter().map(|row| row.iter().map(cell).collect::<Vec<_>>()));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 3));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    if let Some(first) = lines.first_mut() {
        *first = when(colour, first, first.bold());
    }
    lines
}

/// `name  value` lines, the names in one column.
pub fn facts(pairs: &[(&str, String)]) {
    let width = pairs.iter().map(|(k, _)| k.len()).max().unwrap_or(0);
    for (key, value) in pairs {
        line(&format!("{}  {value}", dim(&format!("{key:<width$}"))));
    }
}

/// Or a dash.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

/// Bytes with a decimal unit, as disks and networks are sold.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if value < 10.0 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 100.0 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Milliseconds as people say them: `840 ms`, `12.3 s`, `3 min 20 s`.
pub fn millis(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// Now, by this machine's clock.
pub fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// How long ago, e.g. `3 min ago`.
pub fn ago(t: Timestamp) -> String {
    let s = now().millis_since(t) / 1_000;
    match s {
        ..1 => "now".into(),
        1..60 => format!("{s} s ago"),
        60..3_600 => format!("{} min ago", s / 60),
        3_600..172_800 => format!("{} h ago", s / 3_600),
        _ => format!("{} d ago", s / 86_400),
    }
}

/// How long until then.
pub fn ahead(t: Timestamp) -> String {
    match t.millis_since(now()) / 1_000 {
        ..1 => "now".into(),
        s @ 1..60 => format!("in {s} s"),
        s @ 60..3_600 => format!("in {} min", s / 60),
        s @ 3_600..172_800 => format!("in {} h", s / 3_600),
        s => format!("in {} d", s / 86_400),
    }
}

/// A count with its noun: `1 file`, `3 files`.
pub fn count(n: u64, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

/// The word of an enum as the API writes it.
pub fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(s)) => s,
        _ => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_say_them() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_000), "1.00 kB");
        assert_eq!(bytes(312_400_000), "312 MB");
        assert_eq!(bytes(999_600_000), "1.00 GB");
        assert_eq!(millis(840), "840 ms");
        assert_eq!(millis(107_900), "1 min 47 s");
        assert_eq!(millis(12_340), "12.3 s");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(0, "file"), "0 files");
    }

    #[test]
    fn hostile_names_cannot_speak_to_the_terminal() {
        assert_eq!(safe("RTX 4090 ü"), "RTX 4090 ü");
        assert_eq!(
            safe("a\u{1b}[2Jb\n\u{202e}c\u{9b}"),
            "a\\u{1b}[2Jb\\n\\u{202e}c\\u{9b}"
        );
    }

    #[test]
    fn coloured_cells_align_as_plain_ones_do() {
        let rows = vec![
            vec![Styled::new("ok", Colour::Green), Styled::plain("1")],
            vec![Styled::new("longer", Colour::Red), Styled::plain("200")],
        ];
        let plain = styled_lines(&["A", "N"], &[1], &rows, false);
        assert_eq!(plain[1..], ["ok         1", "longer   200"]);
        let colour = styled_lines(&["A", "N"], &[1], &rows, true);
        assert_eq!(colour[1], "\u{1b}[38;5;34mok\u{1b}[39m         1");
        assert!(colour[0].starts_with("\u{1b}[1m"), "{:?}", colour[0]);
    }

    #[test]
    fn a_table_escapes_whatever_is_in_it() {
        let rows = vec![vec!["a\u{1b}[2J".into(), "1\n2".into()]];
        assert_eq!(table_lines(&["A", "B"], &[], &rows)[1], "a\\u{1b}[2J   1\\n2");
    }

    #[test]
    fn tables_align_and_have_no_trailing_blanks() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long".into(), "200".into()]];
        let lines = table_lines(&["NAME", "N"], &[1], &rows);
        assert_eq!(lines[1..], ["a        1", "long   200"]);
    }
}
