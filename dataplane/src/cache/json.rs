//! JSON objects whose values stay text until somebody needs them: what is not understood passes unchanged, numbers keep
//! their digits.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Cow;

/// A number, literal or other value that is known to be JSON.
pub(crate) type Raw<'a> = Cow<'a, RawValue>;

/// An object that was read, members in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// `None` if the text is no JSON object or a member is there twice.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// As [`Fields::get`], but `None` for null too.
    pub(crate) fn get_some(&self, name: &str) -> Option<&'a RawValue> {
        self.get(name).filter(|value| !is_null(value))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Cow<'a, str>, &'a RawValue)> {
        self.0.iter().map(|(name, value)| (name, *value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields(Vec::new());
                while let Some((Name(name), value)) = map.next_entry()? {
                    if fields.get(&name).is_some() {
                        return Err(A::Error::custom("a member is there twice"));
                    }
                    fields.0.push((name, value));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

/// A member's name, copied only if it has escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// An object to be written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object<'a>(Vec<(Cow<'a, str>, Raw<'a>)>);

impl<'a> Object<'a> {
    pub(crate) fn push(&mut self, name: impl Into<Cow<'a, str>>, value: Raw<'a>) {
        self.0.push((name.into(), value));
    }

    /// As [`Object::push`]; `None` if the value cannot be written as JSON.
    pub(crate) fn push_value(&mut self, name: impl Into<Cow<'a, str>>, value: &impl Serialize) -> Option<()> {
        self.push(name, raw(value)?);
        Some(())
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, &**value)))
    }
}

/// Writes a value; `None` if it has no JSON form.
pub(crate) fn raw<'a>(value: &impl Serialize) -> Option<Raw<'a>> {
    to_raw_value(value).ok().map(Cow::Owned)
}

/// Reads a value; `None` if it is of another type.
pub(crate) fn read<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    serde_json::from_str(value.get()).ok()
}

pub(crate) fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Whether the value is an object or array.
pub(crate) fn is_composite(value: &RawValue) -> bool {
    value.get().starts_with(['{', '['])
}

pub(crate) fn is_string(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_unchanged() {
        let text = r#"{"z":1.10,"a":[1, 2],"\u0041":null}"#;
        let fields = Fields::parse(text).unwrap();
        let mut object = Object::default();
        fields.iter().for_each(|(name, value)| object.push(name.clone(), Cow::Borrowed(value)));
        assert_eq!(serde_json::to_string(&object).unwrap(), r#"{"z":1.10,"a":[1, 2],"A":null}"#);
        assert!(fields.get("A").is_some() && fields.get_some("A").is_none() && fields.get("b").is_none());
        assert_eq!(read::<Vec<u8>>(fields.get("a").unwrap()), Some(vec![1, 2]));
    }

    #[test]
    fn an_object_with_a_member_twice_is_none() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":1}"#, "[]", "null", "{} x"] {
            assert!(Fields::parse(text).is_none(), "{text}");
        }
    }
}
