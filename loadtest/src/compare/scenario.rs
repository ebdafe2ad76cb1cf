//! What is measured, as files say it.

use crate::compare::threads;
use crate::engine::MODELS;
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Those that come with the program, by name.
const OWN: [(&str, &str); 16] = [
    ("chat-1k", include_str!("../../scenarios/chat-1k.toml")),
    ("chat-16k", include_str!("../../scenarios/chat-16k.toml")),
    ("chat-2m", include_str!("../../scenarios/chat-2m.toml")),
    ("chat-rate", include_str!("../../scenarios/chat-rate.toml")),
    ("chat-h2", include_str!("../../scenarios/chat-h2.toml")),
    ("stream-64-burst", include_str!("../../scenarios/stream-64-burst.toml")),
    ("stream-1000-burst", include_str!("../../scenarios/stream-1000-burst.toml")),
    ("stream-64-paced", include_str!("../../scenarios/stream-64-paced.toml")),
    ("stream-1000-paced", include_str!("../../scenarios/stream-1000-paced.toml")),
    ("stream-idle", include_str!("../../scenarios/stream-idle.toml")),
    ("soak", include_str!("../../scenarios/soak.toml")),
    ("cached", include_str!("../../scenarios/cached.toml")),
    ("flood-401", include_str!("../../scenarios/flood-401.toml")),
    ("flood-429", include_str!("../../scenarios/flood-429.toml")),
    ("rivals-chat", include_str!("../../scenarios/rivals-chat.toml")),
    ("rivals-stream", include_str!("../../scenarios/rivals-stream.toml")),
];

/// What stands between client and engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SubjectName {
    /// Nothing: one engine is asked.
    Direct,
    /// `proxy_pass`, no more.
    Nginx,
    /// The same with a map of keys and a limit on requests.
    NginxKeyed,
    /// The same with `proxy_cache`.
    NginxCache,
    /// A plain backend.
    Haproxy,
    /// The least that Pingora can do.
    Pingora,
    /// LiteLLM's proxy with a key.
    Litellm,
    /// Portkey's gateway.
    Portkey,
    /// SGLang's router with a key, by prefixes.
    SglangRouter,
    /// vLLM's router, in turn.
    VllmRouter,
    /// Turnpike's edge with everything on.
    Edge,
}

impl SubjectName {
    /// As it is called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::NginxKeyed => "nginx, keyed",
            Self::NginxCache => "nginx, cache",
            Self::Haproxy => "HAProxy",
            Self::Pingora => "bare Pingora",
            Self::Litellm => "LiteLLM",
            Self::Portkey => "Portkey",
            Self::SglangRouter => "sglang-router",
            Self::VllmRouter => "vllm-router",
            Self::Edge => "edge",
        }
    }
}

/// What is to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Answers by engines, each request another one.
    #[default]
    Chat,
    /// The same request each time, from the cache.
    Cached,
    /// Refused: nobody has the key.
    UnknownKey,
    /// Refused: the key may do very little.
    Limited,
}

impl Kind {
    /// What every answer says.
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::Chat | Self::Cached => 200,
            Self::UnknownKey => 401,
            Self::Limited => 429,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ask {
    #[serde(default)]
    pub(crate) kind: Kind,
    /// One of the simulator's.
    #[serde(default = "instant")]
    pub(crate) model: String,
    pub(crate) body_bytes: usize,
    pub(crate) answer_tokens: u32,
    #[serde(default)]
    pub(crate) stream: bool,
}

fn instant() -> String {
    "sim-instant".to_owned()
}

impl Ask {
    /// Chat that is answered at once, with a body of so many bytes.
    pub(crate) fn of_instant(body_bytes: usize) -> Self {
        Self { kind: Kind::Chat, model: instant(), body_bytes, answer_tokens: 1, stream: false }
    }

    /// A body of the size, different for each `number`.
    pub(crate) fn body(&self, number: u32) -> String {
        let Self { model, answer_tokens, stream, .. } = self;
        let of = |text: &str| {
            json!({"model": model, "stream": stream, "max_tokens": answer_tokens, "temperature": 0,
                "messages": [{"role": "user", "content": text}]})
            .to_string()
        };
        let number = if self.kind == Kind::Cached { 0 } else { number };
        let text = format!("{number:08}");
        let left = self.body_bytes.saturating_sub(of(&text).len());
        of(&(text + &" word".repeat(left.div_ceil(5))[..left]))
    }
}

/// How it is asked.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    /// So many connections for each thread of the machine; once read, that is counted in.
    #[serde(default)]
    pub(crate) each_thread: bool,
    /// Requests a second; as fast as answers come if absent.
    pub(crate) rate: Option<u32>,
    #[serde(default)]
    pub(crate) http2: bool,
    /// Every connection has one stream, which goes on until all have had their first token; what is looked at is memory.
    #[serde(default)]
    pub(crate) hold: bool,
    /// Twenty times as long as others, once: whether memory grows.
    #[serde(default)]
    pub(crate) soak: bool,
}

/// One measurement.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    #[serde(skip_deserializing)]
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) subjects: Vec<SubjectName>,
    pub(crate) request: Ask,
    pub(crate) load: Load,
}

impl Scenario {
    /// Those that come with the program.
    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        OWN.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }

    /// A trace that is sent again.
    pub(crate) fn of_trace(name: &str, speed: f64) -> Self {
        use SubjectName::{Edge, Haproxy, Nginx, Pingora};
        Self {
            name: name.to_owned(),
            about: format!("The trace, {speed} times as fast as it came, on eight engines as fast as large GPUs"),
            subjects: vec![Nginx, Haproxy, Pingora, Edge],
            request: Ask { model: "sim-gpu".to_owned(), stream: true, ..Ask::of_instant(0) },
            load: Load { connections: 0, each_thread: false, rate: None, http2: false, hold: false, soak: true },
        }
    }

    /// One of these, or a file.
    pub(crate) fn find(name: &str) -> anyhow::Result<Self> {
        if let Some((name, text)) = OWN.iter().find(|(own, _)| *own == name) {
            return Self::parse(name, text);
        }
        let known = || OWN.map(|(name, _)| name).join(", ");
        let text = std::fs::read_to_string(name)
            .with_context(|| format!("«{name}» is no file and none of the scenarios {}", known()))?;
        Self::parse(&Path::new(name).file_stem().unwrap_or_default().to_string_lossy(), &text)
    }

    /// The nginx that the others are compared with: the first that there is.
    pub(crate) fn nginx(&self) -> SubjectName {
        let is_nginx =
            |it: &SubjectName| matches!(it, SubjectName::Nginx | SubjectName::NginxKeyed | SubjectName::NginxCache);
        self.subjects.iter().copied().find(is_nginx).unwrap_or(SubjectName::Nginx)
    }

    /// How often it is measured, of so many times.
    pub(crate) const fn rounds(&self, rounds: u32) -> u32 {
        if self.load.soak || self.load.hold { 1 } else { rounds }
    }

    /// Whether a short round comes first that does not count. What is held goes on being accounted for afterwards.
    pub(crate) const fn warms_up(&self) -> bool {
        !self.load.hold
    }

    /// How long each time, where others take so many seconds.
    pub(crate) fn lasting(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds) * if self.load.soak { 20 } else { 1 }
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        use SubjectName::{Edge, Haproxy, Nginx, Pingora};
        let mut read: Self = toml::from_str(text).with_context(|| format!("scenario {name}"))?;
        if read.load.each_thread {
            read.load.connections *= u32::try_from(threads())?;
        }
        let least = read.request.body(0).len();
        ensure!(
            least == read.request.body_bytes,
            "scenario {name}: request.body_bytes: no request is shorter than {least}"
        );
        ensure!(read.load.connections > 0, "scenario {name}: load.connections: must be at least 1");
        ensure!(!read.subjects.is_empty(), "scenario {name}: subjects: nothing to measure");
        let Ask { model, stream, kind, .. } = &read.request;
        let is_known = MODELS.iter().any(|known| known.name == model);
        ensure!(is_known, "scenario {name}: request.model: the simulator has no «{model}»");
        ensure!(!stream || kind.status() == 200, "scenario {name}: request.stream: what is refused is no stream");
        let speaks = |subject: &SubjectName| matches!(subject, Nginx | Haproxy | Pingora | Edge);
        ensure!(!read.load.hold || *stream, "scenario {name}: load.hold: only streams are held");
        let can = !read.load.http2 || !stream && read.subjects.iter().all(speaks);
        ensure!(can, "scenario {name}: load.http2: not for streams, and only for nginx, haproxy, pingora and edge");
        Ok(Self { name: name.to_owned(), ..read })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_scenarios_ask_for_what_they_say() {
        for scenario in Scenario::all().unwrap() {
            let (one, other) = (scenario.request.body(1), scenario.request.body(2));
            assert_eq!((one.len(), other.len()), (scenario.request.body_bytes, scenario.request.body_bytes));
            assert_eq!(one == other, scenario.request.kind == Kind::Cached, "{}", scenario.name);
        }
    }

    #[test]
    fn every_file_comes_with_the_program() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let mut own = OWN.map(|(name, _)| format!("{name}.toml")).to_vec();
        files.sort();
        own.sort();
        assert_eq!(own, files);
    }

    #[test]
    fn connections_may_be_for_each_thread() {
        let text = "about = \"\"\nsubjects = [\"edge\"]\nrequest = { body_bytes = 900, answer_tokens = 1 }\n\
                    load = { connections = 3, each_thread = true }\n";
        let connections = Scenario::parse("mine", text).unwrap().load.connections;
        assert_eq!(connections as usize, 3 * threads());
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| format!("{:#}", Scenario::parse("mine", text).unwrap_err());
        let text = "about = \"\"\nsubjects = [\"edge\"]\nrequest = { body_bytes = 9, answer_tokens = 1 }\n\
                    load = { connections = 1 }\n";
        assert!(error(text).contains("body_bytes: no request is shorter than"), "{}", error(text));
        let text = text.replace("body_bytes = 9", "body_bytes = 900");
        for (part, other, named) in [
            ("answer_tokens = 1", "answer_tokens = 1, model = \"m\"", "request.model"),
            ("answer_tokens = 1", "answer_tokens = 1, stream = true, kind = \"limited\"", "request.stream"),
            ("connections = 1", "connections = 1, http2 = true", "load.http2"),
        ] {
            let text = text.replace(part, other).replace("edge", "direct");
            assert!(error(&text).contains(named), "{}", error(&text));
        }
        let text = text.replace("edge", "hedge");
        assert!(error(&text).contains("hedge"), "{}", error(&text));
        assert!(format!("{:#}", Scenario::find("nowhere").unwrap_err()).contains("chat-1k"));
    }
}
