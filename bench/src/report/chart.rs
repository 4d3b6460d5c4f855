//! Charts: for each link one picture with a panel for each of the metrics that matter most, a bar for each
//! system, memfs's in a colour of its own, wins and losses alike. As SVG and PNG.
//!
//! Each panel has a scale of its own, which begins at nothing; latencies of systems differ by orders of
//! magnitude, so theirs are drawn on a logarithmic one and say so. Text in PNG is drawn with a font
//! that Debian's fonts-dejavu-core has; without it there is SVG only.

use super::table::shown;
use super::{METRICS, Metric, Results};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// What is drawn; the rest is in the table.
const PANELS: [&str; 10] = [
    "read",
    "map",
    "write",
    "map-write",
    "again",
    "random-p50",
    "random8-rate",
    "stores-reopened",
    "mount",
    "remount",
];
const COLUMNS: usize = 2;
const WIDTH: u32 = 1000;
const PANEL_HEIGHT: i32 = 190;
const HEAD_HEIGHT: i32 = 44;
const BAR_HEIGHT: i32 = 15;
/// The names of systems end here.
const NAMES_END: i32 = 96;
/// The longest bar.
const BAR_LENGTH: f64 = 300.0;
/// A logarithmic scale spans so many powers of ten below the largest value.
const DECADES: f64 = 4.0;

const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const INK: RGBColor = RGBColor(0x24, 0x2a, 0x33);
const FAINT: RGBColor = RGBColor(0x6b, 0x75, 0x82);
const OURS: RGBColor = RGBColor(0xd9, 0x5f, 0x02);
const LIMIT: RGBColor = RGBColor(0xb8, 0xbf, 0xc8);
const OTHERS: RGBColor = RGBColor(0x4a, 0x7f, 0xb5);

/// Draws a picture for each link into a folder.
///
/// # Errors
/// One line.
pub fn draw_all(results: &Results, folder: &Path) -> Result<(), String> {
    let can_write_text = register_font();
    if !can_write_text {
        eprintln!("memfs-bench: no PNG charts: {FONT} is missing (fonts-dejavu-core)");
    }
    for link in &results.links {
        let panels = panels(results, link);
        let rows = panels.len().div_ceil(COLUMNS) as i32;
        let size = (WIDTH, (HEAD_HEIGHT + rows * PANEL_HEIGHT) as u32);
        let name = |ending: &str| folder.join(format!("{link}.{ending}"));
        let (svg, png) = (name("svg"), name("png"));
        draw(
            &SVGBackend::new(&svg, size).into_drawing_area(),
            link,
            &panels,
        )?;
        if can_write_text {
            draw(
                &BitMapBackend::new(&png, size).into_drawing_area(),
                link,
                &panels,
            )?;
        }
    }
    Ok(())
}

fn register_font() -> bool {
    let Ok(font) = std::fs::read(FONT) else {
        return false;
    };
    // Fonts are registered once and for all.
    let font: &'static [u8] = Vec::leak(font);
    plotters::style::register_font("sans-serif", FontStyle::Normal, font).is_ok()
}

/// A metric and its values by system.
struct Panel<'a> {
    metric: &'a Metric,
    bars: Vec<(&'a str, f64)>,
}

fn panels<'a>(results: &'a Results, link: &str) -> Vec<Panel<'a>> {
    let metrics = PANELS
        .iter()
        .filter_map(|name| METRICS.iter().find(|m| m.name == *name));
    let panels = metrics.map(|metric| {
        let systems = results.systems.iter();
        // Local reads and writes are beyond every scale; where they are the limit they stay.
        let systems = systems.filter(|system| *system != "local" || metric.name == "again");
        let bars = systems.filter_map(|system| {
            let median = match (metric.of_raw, system.as_str()) {
                (true, "raw") => results.raw(link, metric.name),
                _ => results.median(link, metric.name, system),
            };
            Some((system.as_str(), median?))
        });
        Panel {
            metric,
            bars: bars.collect(),
        }
    });
    // A limit alone says nothing.
    let compares = |panel: &Panel| panel.bars.iter().any(|(system, _)| !is_limit(system));
    panels.filter(compares).collect()
}

/// What the others are measured by.
fn is_limit(system: &str) -> bool {
    ["raw", "local"].contains(&system)
}

type Canvas<B> = DrawingArea<B, Shift>;

fn draw<B: DrawingBackend>(canvas: &Canvas<B>, link: &str, panels: &[Panel]) -> Result<(), String> {
    let wrong = |e: DrawingAreaErrorKind<B::ErrorType>| format!("chart of {link}: {e}");
    canvas.fill(&WHITE).map_err(wrong)?;
    let title = format!("memfs and its peers: {link}");
    text(canvas, &title, (16, 14), 20, &INK, HPos::Left).map_err(wrong)?;
    for (number, panel) in panels.iter().enumerate() {
        let (column, row) = ((number % COLUMNS) as i32, (number / COLUMNS) as i32);
        let corner = (
            16 + column * (WIDTH as i32 / COLUMNS as i32),
            HEAD_HEIGHT + row * PANEL_HEIGHT,
        );
        draw_panel(canvas, panel, corner).map_err(wrong)?;
    }
    canvas.present().map_err(wrong)
}

fn draw_panel<B: DrawingBackend>(
    canvas: &Canvas<B>,
    panel: &Panel,
    (left, top): (i32, i32),
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let Panel { metric, bars } = panel;
    // Of what is a time, less is better.
    let time = ["µs", "ms"].contains(&metric.unit);
    let better = match time {
        true => "less is better, logarithmic",
        false => "more is better",
    };
    text(canvas, metric.title, (left, top), 15, &INK, HPos::Left)?;
    let unit = format!("{}, {better}", metric.unit);
    text(canvas, &unit, (left, top + 19), 11, &FAINT, HPos::Left)?;
    let most = bars
        .iter()
        .map(|(_, value)| *value)
        .fold(f64::MIN_POSITIVE, f64::max);
    for (number, (system, value)) in bars.iter().enumerate() {
        let y = top + 38 + number as i32 * (BAR_HEIGHT + 4);
        let share = match time {
            true => 1.0 + (value / most).log10() / DECADES,
            false => value / most,
        };
        let length = (BAR_LENGTH * share.max(0.005)) as i32;
        let colour = match *system {
            "memfs" => OURS,
            limit if is_limit(limit) => LIMIT,
            _ => OTHERS,
        };
        let from = (left + NAMES_END, y);
        let to = (left + NAMES_END + length, y + BAR_HEIGHT);
        canvas.draw(&Rectangle::new([from, to], colour.filled()))?;
        text(
            canvas,
            system,
            (left + NAMES_END - 8, y + 2),
            12,
            &INK,
            HPos::Right,
        )?;
        text(
            canvas,
            &shown(*value),
            (to.0 + 6, y + 2),
            12,
            &INK,
            HPos::Left,
        )?;
    }
    Ok(())
}

fn text<B: DrawingBackend>(
    canvas: &Canvas<B>,
    words: &str,
    place: (i32, i32),
    size: i32,
    colour: &RGBColor,
    anchor: HPos,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let style = ("sans-serif", size).into_text_style(canvas).color(colour);
    let style = style.pos(Pos::new(anchor, VPos::Top));
    canvas.draw(&Text::new(words.to_owned(), place, style))
}
