//! The table: for each link a row for each metric, a column for each system.

use super::{METRICS, Metric, Results};
use std::fmt::Write as _;

/// All tables, as text.
pub fn tables(results: &Results) -> String {
    let mut text = String::new();
    for link in &results.links {
        let line = results.line(link);
        let line = line.map_or(String::new(), |line| format!(" (line: {line:.1} MiB/s)"));
        let mut rows = vec![header(results)];
        rows.extend(
            METRICS
                .iter()
                .filter_map(|metric| row(results, link, metric)),
        );
        let _ = writeln!(text, "\n## {link}{line}\n\n{}", aligned(&rows));
    }
    text
}

fn header(results: &Results) -> Vec<String> {
    let first = ["".to_owned(), "".to_owned()];
    first
        .into_iter()
        .chain(results.systems.iter().cloned())
        .collect()
}

/// `None` where no system has a value.
fn row(results: &Results, link: &str, metric: &Metric) -> Option<Vec<String>> {
    let mut row = vec![metric.title.to_owned(), metric.unit.to_owned()];
    let raw = results.raw(link, metric.name).filter(|_| metric.of_raw);
    let mut found = false;
    for system in &results.systems {
        row.push(match results.median(link, metric.name, system) {
            Some(median) => {
                found = true;
                match raw.filter(|_| system != "raw") {
                    Some(raw) => format!("{} ({:.2})", shown(median), median / raw),
                    None => shown(median),
                }
            }
            None => "–".into(),
        });
    }
    found.then_some(row)
}

/// Three digits that count.
pub fn shown(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        1.0..10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Columns of equal width, as a table of Markdown.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = widths.iter().enumerate().map(|(column, width)| {
            let cell = row.get(column).map_or("", String::as_str);
            match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            }
        });
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if number == 0 {
            let lines = widths
                .iter()
                .enumerate()
                .map(|(column, width)| match column {
                    0 => "-".repeat(width + 2),
                    _ => "-".repeat(width + 1) + ":",
                });
            let _ = writeln!(text, "|{}|", lines.collect::<Vec<_>>().join("|"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["".into(), "µs".into()],
            vec!["read".into(), "12.0 (0.50)".into()],
        ];
        let expected = "|      |          µs |\n|------|------------:|\n| read | 12.0 (0.50) |\n";
        assert_eq!(aligned(&rows), expected);
    }

    #[test]
    fn values_have_three_digits() {
        let shown: Vec<String> = [1234.5, 56.78, 3.456, 0.0123].map(shown).into();
        assert_eq!(shown, ["1234", "56.8", "3.46", "0.012"]);
    }
}
