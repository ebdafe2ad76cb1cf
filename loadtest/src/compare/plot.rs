//! A plot of what each of several takes: a bar for the median, a line from the least to the most.

use super::spread::Spread;
use std::fmt::Write as _;

/// Pixels: of all, of the names, of the figures behind the bars, of a bar, and between two.
const WIDTH: f64 = 720.0;
const NAMES: f64 = 120.0;
const FIGURES: f64 = 90.0;
const BAR: f64 = 20.0;
const GAP: f64 = 10.0;

/// SVG; `None` without anything to show.
pub(super) fn bars(title: &str, unit: &str, spreads: &[(&str, Spread)]) -> Option<String> {
    let most = spreads.iter().map(|(_, spread)| spread.max).reduce(f64::max)?;
    let scale = (WIDTH - NAMES - FIGURES) / most.max(f64::MIN_POSITIVE);
    let mut bars = String::new();
    let mut y = GAP;
    for (name, spread) in spreads {
        let (from, to) = (NAMES + spread.min * scale, NAMES + spread.max * scale);
        let (middle, text, length) = (y + BAR / 2.0, y + BAR * 0.75, spread.median * scale);
        // Writing into a String cannot fail.
        let _ = writeln!(
            bars,
            "<text x=\"{x:.0}\" y=\"{text:.0}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{NAMES}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"#7a9cc6\"/>\
             <line x1=\"{from:.1}\" y1=\"{middle:.0}\" x2=\"{to:.1}\" y2=\"{middle:.0}\" stroke=\"#222\" stroke-width=\"2\"/>\
             <text x=\"{behind:.1}\" y=\"{text:.0}\">{median:.1} {unit}</text>",
            x = NAMES - 8.0,
            behind = to + 6.0,
            median = spread.median,
        );
        y += BAR + GAP;
    }
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{bars}</svg>\n"
    ))
}
