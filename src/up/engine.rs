//! Which engine this machine can serve with, and what it serves.

use crate::weights;
use clap::ValueEnum;
use tracing::warn;

/// The engine as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The built-in engine if its weights can be had, else echo.
    Auto,
    /// A small language model on the CPU.
    Builtin,
    /// No model at all: answers with what it was asked. For trying the road, not the traffic.
    Echo,
}

/// The engine that is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Builtin,
    Echo,
}

/// A model that is offered from the first start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    pub(super) provider: &'static str,
    pub(super) version: &'static str,
    pub(super) category: &'static str,
    /// Longest prompt and answer together, tokens.
    pub(super) context_length: u32,
}

#[cfg(feature = "builtin-engine")]
const BUILTIN: &[Model] = {
    use turnpike_gpu_node::builtin;
    &[
        Model {
            id: builtin::CHAT_MODEL,
            name: "SmolLM2 135M Instruct",
            provider: "huggingfacetb",
            version: builtin::CHAT_MODEL_VERSION,
            category: "chat",
            context_length: builtin::CHAT_CONTEXT_LENGTH,
        },
        Model {
            id: builtin::EMBEDDING_MODEL,
            name: "all-MiniLM-L6-v2",
            provider: "sentence-transformers",
            version: builtin::EMBEDDING_MODEL_VERSION,
            category: "embedding",
            context_length: builtin::EMBEDDING_CONTEXT_LENGTH,
        },
    ]
};
#[cfg(not(feature = "builtin-engine"))]
const BUILTIN: &[Model] = ECHO;

const ECHO: &[Model] = &[Model {
    id: "echo",
    name: "Echo (no model)",
    provider: "turnpike",
    version: "1",
    category: "chat",
    context_length: 32_768,
}];

impl Engine {
    /// `engine.kind` of the node's settings.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Echo => "echo",
        }
    }

    /// What it serves; the first is the one to chat with.
    pub(super) const fn models(self) -> &'static [Model] {
        match self {
            Self::Builtin => BUILTIN,
            Self::Echo => ECHO,
        }
    }

    /// Environment that its process needs.
    pub(super) const fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            #[cfg(feature = "builtin-engine")]
            Self::Builtin => &turnpike_gpu_node::builtin::ENVIRONMENT,
            #[cfg(not(feature = "builtin-engine"))]
            Self::Builtin => &[],
            Self::Echo => &[],
        }
    }

    /// Settles on an engine; fetches weights if need be, so it blocks for as long as a download takes.
    pub(super) fn settle(choice: Choice) -> anyhow::Result<Self> {
        let without_model = match choice {
            Choice::Echo => return Ok(Self::Echo),
            Choice::Auto | Choice::Builtin => weights::fetch().err(),
        };
        match without_model {
            None => Ok(Self::Builtin),
            Some(reason) if choice == Choice::Builtin => Err(reason.context("the built-in engine has no weights")),
            Some(reason) => {
                warn!(reason = format!("{reason:#}"), "NO LANGUAGE MODEL: its weights cannot be had");
                warn!("serving the engine `echo` instead, under the model id `echo`: it repeats what it is asked");
                Ok(Self::Echo)
            }
        }
    }
}
