//! Parameters in the form that Stripe reads: `application/x-www-form-urlencoded`, with brackets for what is inside.

use std::fmt::Write as _;

/// Parameters in the order that they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form(String);

impl Form {
    /// No parameters.
    pub(crate) const fn new() -> Self {
        Self(String::new())
    }

    /// Adds one.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        encode(&mut self.0, name);
        self.0.push('=');
        encode(&mut self.0, &value.to_string());
        self
    }

    /// Adds one if there is something to add.
    #[must_use]
    pub(crate) fn maybe(self, name: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// As it is sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn encode(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'[' | b']' => {
                out.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            byte => drop(write!(out, "%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_encoded() {
        let form = Form::new().with("name", "A & B=ü").with("metadata[id]", 5).maybe("none", None::<&str>);
        assert_eq!(form.as_str(), "name=A%20%26%20B%3D%C3%BC&metadata[id]=5");
    }
}
