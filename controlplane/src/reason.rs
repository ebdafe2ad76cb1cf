//! Why the request that is being answered changes something, as its operator says: carried beside the call, as a trace's
//! span is, to the log that it is written to.

use std::sync::Arc;

tokio::task_local! {
    static REASON: Option<Arc<str>>;
}

/// The header in which operators say why.
pub(crate) const HEADER: &str = "turnpike-reason";
/// What one that is not sound is answered with.
pub(crate) const EXPECTED: &str = "expected 1 to 500 printable characters";
/// Longest reason, characters.
const LONGEST: usize = 500;

/// A reason that can be kept: 1 to 500 printable characters.
pub(crate) fn sound(text: &str) -> Option<Arc<str>> {
    let text = text.trim();
    let fits = (1..=LONGEST).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    fits.then(|| text.into())
}

/// Runs something for this reason.
pub(crate) async fn with<F: Future>(reason: Option<Arc<str>>, run: F) -> F::Output {
    REASON.scope(reason, run).await
}

/// The reason that was given, if one was.
pub(crate) fn current() -> Option<String> {
    REASON.try_with(|reason| reason.as_deref().map(str::to_owned)).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reason_is_known_inside_and_nowhere_else() {
        assert_eq!(current(), None);
        assert_eq!(with(sound(" ticket 4711 "), async { current() }).await.as_deref(), Some("ticket 4711"));
        assert_eq!(with(None, async { current() }).await, None);
        for unsound in ["", "  ", "a\nb", &"x".repeat(501)] {
            assert!(sound(unsound).is_none(), "{unsound}");
        }
    }
}
