//! All API keys of the deployment, in 46 bytes each.
//!
//! A [`KeyTable`] is an immutable, sorted [`Packed`] part that successive snapshots share, and on top of it a small
//! persistent map of what changed since. Looking a key up asks the map, then searches the sorted part by interpolation:
//! digests are as good as random numbers, so a handful of probes finds one among millions.

mod entry;
mod packed;
mod profile;
mod table;

pub(crate) use entry::{Entry, Rest, Short, short_of};
pub(crate) use packed::{Builder, Packed, Tables, merge};
pub(crate) use table::KeyTable;

#[cfg(test)]
mod tests;
