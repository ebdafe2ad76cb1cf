//! What benchmarks and figures measure; not part of the edge.

mod hot;
mod large;
mod limits;

pub use hot::HotPath;
pub use large::{Large, key};
pub use limits::Admission;
