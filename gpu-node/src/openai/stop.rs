//! Stop sequences in text that arrives piece by piece.

/// Passes text on until a stop sequence appears, holding back only what may be the beginning of one.
#[derive(Clone, Debug)]
pub(crate) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// `stops`: as the client sent them. Empty ones never match.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece. `Ok` is text that may go out now (perhaps empty); `Err` is the last text before a stop
    /// sequence: generation ends here and nothing more is to be pushed.
    pub(crate) fn push(&mut self, piece: &str) -> Result<String, String> {
        if self.stops.is_empty() {
            return Ok(piece.to_owned());
        }
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Err(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        Ok(std::mem::replace(&mut self.held, kept))
    }

    /// What was held back, once generation has ended without a stop sequence.
    pub(crate) fn finish(self) -> String {
        self.held
    }
}

/// Length of the longest end of `text` that begins `stop`, bytes.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&length| stop.is_char_boundary(length) && text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything the filter lets out when fed `pieces`, and whether it stopped.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|&s| s.to_owned()).collect();
        let mut filter = StopFilter::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            match filter.push(piece) {
                Ok(text) => out.push_str(&text),
                Err(text) => return (out + &text, true),
            }
        }
        (out + &filter.finish(), false)
    }

    #[test]
    fn a_stop_sequence_across_pieces_is_found_and_left_out() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
        assert_eq!(run(&["END"], &["one E", "N", "E two"]), ("one ENE two".to_owned(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".to_owned(), true));
        assert_eq!(run(&["b", "ab"], &["xab"]), ("x".to_owned(), true));
    }

    #[test]
    fn what_only_looked_like_a_beginning_comes_out_at_the_end() {
        assert_eq!(run(&["###"], &["a##"]), ("a##".to_owned(), false));
        assert_eq!(run(&["", "é!"], &["caf", "é"]), ("café".to_owned(), false));
        assert_eq!(run(&[], &["a", "b"]), ("ab".to_owned(), false));
    }

    #[test]
    fn text_that_cannot_begin_a_stop_goes_out_at_once() {
        let mut filter = StopFilter::new(&["END".to_owned()]);
        assert_eq!(filter.push("hello E"), Ok("hello ".to_owned()));
        assert_eq!(filter.push("x"), Ok("Ex".to_owned()));
    }
}
