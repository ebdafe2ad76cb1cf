//! Who may use the admin API: bearer tokens from a file, each with a role.

use std::path::{Path, PathBuf};
use turnpike_config::KeyDigest;

/// Fewest characters of a token.
const MIN_TOKEN: usize = 16;

/// What an operator may do. Each role includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Reads.
    Viewer,
    /// Also changes things.
    Admin,
    /// Also deletes organizations.
    Owner,
}

impl Role {
    /// As written in the token file and the audit log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Viewer, Self::Admin, Self::Owner].into_iter().find(|role| role.name() == name)
    }
}

/// Why the token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTokens {
    /// Not readable.
    #[error("admin.token_file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not usable; the line itself is not repeated.
    #[error("admin.token_file {path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Nobody could use the API.
    #[error("admin.token_file {path} holds no token: write one line such as owner:<a long random text>")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The tokens that are let in, as digests.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<(KeyDigest, Role)>);

impl Tokens {
    /// Reads the file: a token per line, `role:token` or a bare token (an owner's). Blank lines and `#` lines are
    /// skipped.
    pub(crate) fn load(path: &Path) -> Result<Self, BadTokens> {
        let text = std::fs::read_to_string(path).map_err(|source| BadTokens::File { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, BadTokens> {
        let mut tokens = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |reason| BadTokens::Line { path: path.to_owned(), line: number, reason };
            let (role, token) = match line.split_once(':') {
                Some((role, token)) => {
                    (Role::from_name(role).ok_or_else(|| bad("the role is not owner, admin or viewer"))?, token)
                }
                None => (Role::Owner, line),
            };
            if token.len() < MIN_TOKEN {
                return Err(bad("a token has at least 16 characters"));
            }
            tokens.push((KeyDigest::of(token), role));
        }
        if tokens.is_empty() { Err(BadTokens::Empty { path: path.to_owned() }) } else { Ok(Self(tokens)) }
    }

    /// The role of a token's bearer. Takes the same time for every token of the same length.
    pub(crate) fn role(&self, token: &str) -> Option<Role> {
        let presented = KeyDigest::of(token);
        let mut found = None;
        for (digest, role) in &self.0 {
            let difference = digest.0.iter().zip(presented.0).fold(0_u8, |all, (a, b)| all | (a ^ b));
            if difference == 0 {
                found = Some(*role);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Tokens, BadTokens> {
        Tokens::parse(text, Path::new("tokens"))
    }

    #[test]
    fn lines_carry_roles() {
        let tokens = parse("# mine\nsixteen-letters-a\nviewer:sixteen-letters-b\n\n").expect("valid");
        assert_eq!(tokens.role("sixteen-letters-a"), Some(Role::Owner));
        assert_eq!(tokens.role("sixteen-letters-b"), Some(Role::Viewer));
        assert_eq!(tokens.role("viewer:sixteen-letters-b"), None);
        assert_eq!(tokens.role(""), None);
    }

    #[test]
    fn bad_lines_are_named_but_never_repeated() {
        let message = |text| parse(text).expect_err("refused").to_string();
        assert!(message("\n# none").contains("holds no token"));
        assert!(message("root:sixteen-letters-a").contains("line 1"));
        assert!(!message("\nshort-hush").contains("short-hush"));
    }
}
