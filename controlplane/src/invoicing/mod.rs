//! What an invoice says: lines, rounding, tax, its canonical form and how it is printed. No clock, no SQL, no network.

mod document;
mod html;
mod lines;
mod rounding;
mod table;

pub(crate) use document::{Document, Party, percent_text};
pub(crate) use html::{Note, render as html, render_note as note_html};
pub(crate) use lines::{Charge, Line, LineKind, Terms, UnitPrices};
pub(crate) use rounding::{CENT, floor_cents, share};
pub(crate) use table::{lines as csv_lines, list as csv_list};
