//! Where downloads are kept between runs.

use crate::account;
use std::path::PathBuf;

/// The folder for downloaded parts: `$TURNPIKE_CACHE`, else for root `/var/cache/turnpike` (which the unprivileged
/// users that servers run as can read), else `turnpike` under `$XDG_CACHE_HOME` or `~/.cache`.
pub fn directory() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(chosen) = variable("TURNPIKE_CACHE") {
        return chosen;
    }
    if account::is_root() {
        return PathBuf::from("/var/cache/turnpike");
    }
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("turnpike")
}
