//! What an answer is cached by: a digest over everything that changes the answer, and nothing that does not.
//!
//! Two requests with different keys cost a miss; two different requests with one key would be a lie. So whatever is in
//! doubt is part of the key.

#[cfg(test)]
mod pairs;

use std::borrow::Cow;
use std::ops::Range;
use turnpike_config::{CacheKey, Endpoint, OrgId};

/// Raised whenever keys are made differently, so that no answer is found by a key of another make.
const FORMAT: u8 = 2;
/// Objects and arrays inside each other, the body itself among them: serde_json's own limit.
const MAX_DEPTH: u32 = 127;
/// Members of the body that change how an answer is delivered or accounted for, not what it says. `model` is what the
/// client calls the model that the scope names. `service_tier` is not among them: a tier may be served by another
/// engine, and answers repeat it.
const IGNORED: [&str; 8] =
    ["metadata", "model", "prompt_cache_key", "safety_identifier", "store", "stream", "stream_options", "user"];

/// Who shares an answer, and what gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope<'a> {
    /// The organization and how often its answers were purged. `None`: organizations share the model's answers.
    pub(crate) organization: Option<(OrgId, u32)>,
    pub(crate) model: &'a str,
    pub(crate) version: &'a str,
    /// How often the model's answers were purged.
    pub(crate) model_generation: u32,
    pub(crate) endpoint: Endpoint,
}

/// The key of a request whose body keeps to JSON's grammar, as every body does that was peeked at: that is not checked again.
/// `None` if it is no object, nests deeper than 127 levels, holds one member twice, or has text that is no Unicode: engines
/// disagree about what such bodies mean.
pub(crate) fn key(scope: &Scope<'_>, body: &[u8]) -> Option<CacheKey> {
    let text = std::str::from_utf8(body).ok()?;
    let mut out = Vec::with_capacity(body.len() + 256);
    write_scope(&mut out, scope);
    let mut walk = Walk { text, at: 0, out };
    walk.body()?;
    Some(CacheKey::of(&walk.out))
}

fn write_scope(out: &mut Vec<u8>, scope: &Scope<'_>) {
    out.push(FORMAT);
    match scope.organization {
        None => out.push(0),
        Some((organization, generation)) => {
            out.push(1);
            out.extend_from_slice(organization.0.as_bytes());
            out.extend_from_slice(&generation.to_le_bytes());
        }
    }
    for text in [scope.model, scope.version, scope.endpoint.name()] {
        write_framed(out, text);
    }
    out.extend_from_slice(&scope.model_generation.to_le_bytes());
}

/// The length goes first, so that no text can be taken for the end of one and the beginning of another.
fn write_framed(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A walk over JSON text that keeps to the grammar, writing the one form that all equal texts have: members in order of
/// their names, strings unescaped, numbers as they stand (an engine may tell 1 from 1.0, and large ones lose digits in
/// floating point). Every value begins with a byte that tells its kind.
struct Walk<'a> {
    text: &'a str,
    at: usize,
    out: Vec<u8>,
}

/// A member of an object, and where in the output it was written.
struct Member<'a> {
    name: Cow<'a, str>,
    written: Range<usize>,
}

impl<'a> Walk<'a> {
    fn body(&mut self) -> Option<()> {
        match self.next_byte()? {
            b'{' => self.object(MAX_DEPTH, &IGNORED),
            _ => None,
        }
    }

    /// The next byte that is not white space; steps past it.
    fn next_byte(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let blank = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        self.at += blank + 1;
        rest.get(blank).copied()
    }

    /// Writes the value that begins with `first`, the byte before the walk's position. `depth`: levels left.
    fn value(&mut self, first: u8, depth: u32) -> Option<()> {
        match first {
            b'{' => self.object(depth, &[]),
            b'[' => self.array(depth),
            b'"' => {
                let text = self.string()?;
                self.out.push(b'"');
                write_framed(&mut self.out, &text);
                Some(())
            }
            _ => self.word(first),
        }
    }

    fn object(&mut self, depth: u32, ignored: &[&str]) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.out.push(b'{');
        let start = self.out.len();
        let mut members = Vec::new();
        loop {
            match self.next_byte()? {
                b'"' => members.push(self.member(depth, ignored)?),
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        self.sort(start, members)?;
        self.out.push(b'}');
        Some(())
    }

    fn member(&mut self, depth: u32, ignored: &[&str]) -> Option<Member<'a>> {
        let start = self.out.len();
        let name = self.string()?;
        write_framed(&mut self.out, &name);
        if self.next_byte()? != b':' {
            return None;
        }
        let first = self.next_byte()?;
        self.value(first, depth)?;
        if ignored.contains(&&*name) {
            self.out.truncate(start);
        }
        Some(Member { name, written: start..self.out.len() })
    }

    /// Puts the members written since `start` in order. `None` if one is there twice.
    fn sort(&mut self, start: usize, mut members: Vec<Member<'a>>) -> Option<()> {
        if members.is_sorted_by(|a, b| a.name < b.name) {
            return Some(());
        }
        members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if !members.is_sorted_by(|a, b| a.name < b.name) {
            return None;
        }
        let mut sorted = Vec::with_capacity(self.out.len() - start);
        for member in members {
            sorted.extend_from_slice(self.out.get(member.written)?);
        }
        self.out.truncate(start);
        self.out.extend_from_slice(&sorted);
        Some(())
    }

    fn array(&mut self, depth: u32) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.out.push(b'[');
        loop {
            match self.next_byte()? {
                b',' => {}
                b']' => break,
                first => self.value(first, depth)?,
            }
        }
        self.out.push(b']');
        Some(())
    }

    /// Reads a string whose opening quote is the byte before the walk's position.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.text.as_bytes().get(self.at..)?;
            let stop = memchr::memchr2(b'"', b'\\', rest)?;
            self.at += stop + 1;
            if rest.get(stop) == Some(&b'"') {
                break;
            }
            escaped = true;
            self.at += 1;
        }
        if escaped {
            let quoted = self.text.get(start - 1..self.at)?;
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        self.text.get(start..self.at - 1).map(Cow::Borrowed)
    }

    /// Writes a number or literal as it stands.
    fn word(&mut self, first: u8) -> Option<()> {
        let start = self.at.checked_sub(1)?;
        let rest = self.text.as_bytes().get(self.at..)?;
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        self.at += rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        let kind = if first.is_ascii_alphabetic() { b'l' } else { b'n' };
        self.out.push(kind);
        write_framed(&mut self.out, self.text.get(start..self.at)?);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const SCOPE: Scope<'_> =
        Scope { organization: None, model: "m", version: "1", model_generation: 0, endpoint: Endpoint::Chat };

    fn of(body: &str) -> CacheKey {
        key(&SCOPE, body.as_bytes()).unwrap()
    }

    #[test]
    fn texts_of_one_meaning_have_one_key() {
        for (a, b) in [
            (r#"{"a":1,"b":[true,null]}"#, " {\"b\" :\t[true ,null],\r\n\"a\":1 } "),
            (r#"{"A":"A\n/é😀"}"#, r#"{"\u0041":"\u0041\u000a\/\u00e9\ud83d\ude00"}"#),
            (r#"{"a":{"x":1,"y":{"p":1,"q":2}}}"#, r#"{"a":{"y":{"q":2,"p":1},"x":1}}"#),
            (
                r#"{"a":1}"#,
                r#"{"user":"u","a":1,"stream":true,"stream_options":{"include_usage":true},"metadata":{"k":"v"},
                    "store":true,"safety_identifier":"s","prompt_cache_key":"p","model":"alias"}"#,
            ),
            ("{}", r#"{"use\u0072":{"deep":[1]}}"#),
        ] {
            assert_eq!(of(a), of(b), "{a} {b}");
        }
    }

    #[test]
    fn texts_of_different_meaning_have_different_keys() {
        let texts = [
            "{}",
            r#"{"a":1}"#,
            r#"{"a":1.0}"#,
            r#"{"a":"1"}"#,
            r#"{"a":null}"#,
            r#"{"a":"null"}"#,
            r#"{"a":true}"#,
            r#"{"a":[]}"#,
            r#"{"a":{}}"#,
            r#"{"a":[1]}"#,
            r#"{"a":[1,2]}"#,
            r#"{"a":[2,1]}"#,
            r#"{"a":[12]}"#,
            r#"{"a":[[1],2]}"#,
            r#"{"a":[[1,2]]}"#,
            r#"{"a":9007199254740993}"#,
            r#"{"a":9007199254740992}"#,
            r#"{"a":123456789012345678901234567890}"#,
            r#"{"a":123456789012345678901234567891}"#,
            r#"{"a":{"user":"u"}}"#,
            r#"{"a":{"user":"v"}}"#,
            r#"{"a":{"stream":true}}"#,
            r#"{"a":1,"service_tier":"flex"}"#,
            r#"{"a":1,"b":null}"#,
            r#"{"b":1}"#,
            r#"{"User":"u"}"#,
            r#"{"a":"{\"b\":1}"}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"a":{},"b":1}"#,
        ];
        let mut keys: Vec<_> = texts.iter().map(|text| of(text)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), texts.len());
    }

    #[test]
    fn the_scope_is_part_of_the_key() {
        let org = |n: u128, generation| Some((OrgId(Uuid::from_u128(n)), generation));
        let scopes = [
            SCOPE,
            Scope { organization: org(1, 0), ..SCOPE },
            Scope { organization: org(1, 1), ..SCOPE },
            Scope { organization: org(2, 0), ..SCOPE },
            Scope { model: "m1", version: "", ..SCOPE },
            Scope { model: "", version: "m1", ..SCOPE },
            Scope { version: "2", ..SCOPE },
            Scope { model_generation: 1, ..SCOPE },
            Scope { endpoint: Endpoint::Completion, ..SCOPE },
        ];
        let mut keys: Vec<_> = scopes.iter().map(|scope| key(scope, b"{}").unwrap()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), scopes.len());
    }

    #[test]
    fn bodies_of_no_certain_meaning_have_no_key() {
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(key(&SCOPE, nested(126).as_bytes()).is_some());
        assert!(key(&SCOPE, nested(127).as_bytes()).is_none());
        assert!(key(&SCOPE, nested(100_000).as_bytes()).is_none());
        for body in [
            "",
            "[]",
            "1",
            "\"{}\"",
            "{",
            "{\"a\":1",
            "{\"a\" 1}",
            "{\"a\":\"",
            "{\"a\":\"\\",
            "\u{feff}{}",
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"\u0061":1}"#,
            r#"{"user":1,"user":1}"#,
            r#"{"user":{"x":1,"x":1}}"#,
            r#"{"a":[{"x":1,"x":1}]}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\q"}"#,
        ] {
            assert!(key(&SCOPE, body.as_bytes()).is_none(), "{body}");
        }
        assert!(key(&SCOPE, b"{\"a\":\"\xff\"}").is_none());
    }
}
