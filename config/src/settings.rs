//! Bootstrap settings: TOML plus `TURNPIKE_*` environment variables, validated whole.
//!
//! A plane reads its settings through [`Fields`], which notes every mistake with its path instead of stopping at the
//! first, refuses fields that nobody asked for, and lets the environment override the file: `link.listen` is
//! `TURNPIKE_LINK__LISTEN`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

/// Everything that is wrong with a settings file, a line each.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} in {source_name}:\n{}", plural(.mistakes.len()), .mistakes.iter().map(|m| format!("  - {m}")).collect::<Vec<_>>().join("\n"))]
pub struct BadSettings {
    /// The file, or where else the settings came from.
    pub source_name: String,
    /// `path: reason` each.
    pub mistakes: Vec<String>,
}

fn plural(count: usize) -> String {
    if count == 1 { "1 mistake".to_owned() } else { format!("{count} mistakes") }
}

/// A value that a setting can hold.
pub trait Setting: Sized {
    /// What is expected, for the error message: "a port number (0 to 65535)".
    const EXPECTED: &'static str;
    /// From text, as in the environment or a TOML string.
    fn from_text(text: &str) -> Option<Self>;
    /// From a TOML value; by default only strings.
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
}

impl Setting for String {
    const EXPECTED: &'static str = "a non-empty string";
    fn from_text(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| text.to_owned())
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "a path";
    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
}

impl Setting for SocketAddr {
    const EXPECTED: &'static str = "an address and port such as 127.0.0.1:8080";
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Setting for u64 {
    const EXPECTED: &'static str = "a whole number, 0 or more";
    fn from_text(text: &str) -> Option<Self> {
        text.replace('_', "").parse().ok()
    }
    fn from_value(value: &Value) -> Option<Self> {
        value.as_integer().and_then(|n| n.try_into().ok())
    }
}

impl Setting for u32 {
    const EXPECTED: &'static str = "a whole number from 0 to 4294967295";
    fn from_text(text: &str) -> Option<Self> {
        u64::from_text(text)?.try_into().ok()
    }
    fn from_value(value: &Value) -> Option<Self> {
        u64::from_value(value)?.try_into().ok()
    }
}

impl Setting for f64 {
    const EXPECTED: &'static str = "a number such as 0.25";
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &Self| number.is_finite())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => Some(*number).filter(|number| number.is_finite()),
            // A small whole number is exact as a float; others are nothing that a fraction is meant by.
            Value::Integer(number) => i32::try_from(*number).ok().map(Self::from),
            _ => None,
        }
    }
}

impl Setting for Duration {
    const EXPECTED: &'static str = "a duration such as \"250ms\", \"30s\", \"5m\" or \"24h\"";
    fn from_text(text: &str) -> Option<Self> {
        let split = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().ok()?;
        match unit {
            "ms" => Some(Self::from_millis(number)),
            "s" => Some(Self::from_secs(number)),
            "m" => Some(Self::from_secs(number.checked_mul(60)?)),
            "h" => Some(Self::from_secs(number.checked_mul(3600)?)),
            _ => None,
        }
    }
}

impl<T: Setting> Setting for Vec<T> {
    const EXPECTED: &'static str = "a list of one or more (in the environment: separated by commas)";
    fn from_text(text: &str) -> Option<Self> {
        text.split(',').map(|item| T::from_text(item.trim())).collect()
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value.as_array() {
            // One value stands for a list of one.
            None => T::from_value(value).map(|one| vec![one]),
            Some(all) if all.is_empty() => None,
            Some(all) => all.iter().map(T::from_value).collect(),
        }
    }
}

/// Reads fields out of one settings document. Take every field, then call [`Fields::finish`].
pub struct Fields<'e> {
    source_name: String,
    table: Table,
    known: Vec<String>,
    mistakes: Vec<String>,
    environment: &'e dyn Fn(&str) -> Option<String>,
}

impl<'e> Fields<'e> {
    /// Parses TOML text. `environment` is asked for overrides by variable name; pass `&|name| std::env::var(name).ok()`.
    pub fn parse(
        source_name: &str,
        text: &str,
        environment: &'e dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, BadSettings> {
        let table = text.parse::<Table>().map_err(|e| BadSettings {
            source_name: source_name.to_owned(),
            mistakes: vec![e.to_string().trim_end().to_owned()],
        })?;
        Ok(Self { source_name: source_name.to_owned(), table, known: Vec::new(), mistakes: Vec::new(), environment })
    }

    /// A field that must be there. On a mistake the note is taken and `None` returned; [`Fields::finish`] will fail.
    pub fn required<T: Setting>(&mut self, path: &str) -> Option<T> {
        let before = self.mistakes.len();
        let value = self.optional(path);
        if value.is_none() && self.mistakes.len() == before {
            self.mistakes.push(format!("{path}: missing; expected {}", T::EXPECTED));
        }
        value
    }

    /// A field with a default.
    pub fn or<T: Setting>(&mut self, path: &str, default: T) -> T {
        self.optional(path).unwrap_or(default)
    }

    /// A field that may be absent. `path` is dotted: `tls.cert`.
    pub fn optional<T: Setting>(&mut self, path: &str) -> Option<T> {
        self.known.push(path.to_owned());
        let variable = format!("TURNPIKE_{}", path.replace('.', "__").to_uppercase());
        if let Some(text) = (self.environment)(&variable) {
            let value = T::from_text(&text);
            if value.is_none() {
                self.mistakes.push(format!("{path} (from {variable}): expected {}", T::EXPECTED));
            }
            return value;
        }
        let value = lookup(&self.table, path)?;
        let parsed = T::from_value(value);
        if parsed.is_none() {
            let found = value.type_str();
            self.mistakes.push(format!("{path}: expected {}, found {found} {value}", T::EXPECTED));
        }
        parsed
    }

    /// Notes a mistake found by the caller, such as two fields that exclude each other.
    pub fn mistake(&mut self, path: &str, reason: &str) {
        self.mistakes.push(format!("{path}: {reason}"));
    }

    /// Every field has been read: fails with all mistakes, unknown fields among them.
    pub fn finish<T>(mut self, settings: Option<T>) -> Result<T, BadSettings> {
        let mut unknown = Vec::new();
        collect_unknown(&self.table, "", &self.known, &mut unknown);
        for path in unknown {
            let hint = nearest(&path, &self.known).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            self.mistakes.push(format!("{path}: unknown setting{hint}"));
        }
        match settings {
            Some(settings) if self.mistakes.is_empty() => Ok(settings),
            _ => Err(BadSettings { source_name: self.source_name, mistakes: self.mistakes }),
        }
    }
}

fn lookup<'t>(table: &'t Table, path: &str) -> Option<&'t Value> {
    match path.split_once('.') {
        Some((section, rest)) => lookup(table.get(section)?.as_table()?, rest),
        None => table.get(path),
    }
}

fn collect_unknown(table: &Table, prefix: &str, known: &[String], unknown: &mut Vec<String>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let is_section = known.iter().any(|k| k.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')));
        match value.as_table() {
            Some(inner) if is_section => collect_unknown(inner, &path, known, unknown),
            _ if known.contains(&path) => {}
            _ => unknown.push(path),
        }
    }
}

/// A known path with the same letters but for two edits, for the hint.
fn nearest<'k>(path: &str, known: &'k [String]) -> Option<&'k str> {
    let closest = known.iter().map(|k| (edit_distance(path, k), k)).min()?;
    (closest.0 <= 2).then_some(closest.1.as_str())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample {
        listen: SocketAddr,
        patience: Duration,
    }

    fn read(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Sample, BadSettings> {
        let mut fields = Fields::parse("sample.toml", text, environment)?;
        let listen = fields.required("http.listen");
        let patience = fields.or("patience", Duration::from_secs(1));
        fields.finish(listen.map(|listen| Sample { listen, patience }))
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let text = "patience = 5\n[http]\nlisten = \"nowhere\"\nlisen = 1\n[extra]\na = 1";
        let error = read(text, &|_| None).err().map(|e| e.to_string()).unwrap_or_default();
        for part in [
            "4 mistakes in sample.toml",
            "http.listen: expected an address",
            "patience: expected a duration",
            "http.lisen: unknown setting; did you mean http.listen?",
            "extra: unknown setting",
        ] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let environment = |name: &str| (name == "TURNPIKE_HTTP__LISTEN").then(|| "127.0.0.1:2".to_owned());
        let sample = read("patience = \"250ms\"\n[http]\nlisten = \"127.0.0.1:1\"", &environment);
        assert!(sample.is_ok_and(|s| s.listen.port() == 2 && s.patience == Duration::from_millis(250)));
    }

    #[test]
    fn a_list_has_something_in_it() {
        let read = |text: &str| {
            let mut fields = Fields::parse("t", text, &|_| None).unwrap();
            let addresses: Option<Vec<String>> = fields.required("control.address");
            fields.finish(addresses)
        };
        assert_eq!(read("control.address = \"a:1\"").unwrap(), ["a:1"]);
        assert_eq!(read("control.address = [\"a:1\", \"b:1\"]").unwrap(), ["a:1", "b:1"]);
        let mistake = read("control.address = []").unwrap_err().to_string();
        assert!(mistake.contains("a list of one or more"), "{mistake}");
    }

    #[test]
    fn a_missing_field_says_what_is_expected() {
        let error = read("", &|_| None).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("1 mistake in sample.toml") && error.contains("http.listen: missing"), "{error}");
    }
}
