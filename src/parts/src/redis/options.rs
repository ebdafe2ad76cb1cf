//! What a server is to be like, and its settings file.

use super::Error;
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Settings of a throw-away server. The default is open, without TLS, and evicts nothing.
#[derive(Clone, Debug, Default)]
pub struct Options {
    password: Option<String>,
    user: Option<User>,
    maxmemory_policy: Option<String>,
    tls: Option<Tls>,
    clustered: bool,
}

/// The files that a server shows its identity with.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Its certificate (PEM), valid for 127.0.0.1.
    pub cert: PathBuf,
    /// The certificate's private key (PEM).
    pub key: PathBuf,
    /// Whose certificates to trust (PEM): the one who signed `cert`, or `cert` itself.
    pub ca: PathBuf,
}

impl Tls {
    /// A new authority and a certificate of it, valid for two days, made by `openssl` into `directory`.
    pub fn make(directory: &Path) -> Result<Self, Error> {
        let file = |name: &str| directory.join(name);
        let (ca, ca_key, cert, key) = (file("ca.pem"), file("ca.key"), file("cert.pem"), file("cert.key"));
        let authority = ["-subj", "/CN=Tests", "-addext", "basicConstraints=critical,CA:TRUE"].map(OsStr::new);
        request(&ca, &ca_key, &authority)?;
        let names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"].map(OsStr::new);
        let signer = ["-addext".as_ref(), "basicConstraints=CA:FALSE".as_ref(), "-CA".as_ref(), ca.as_os_str()];
        let signer_key = ["-CAkey".as_ref(), ca_key.as_os_str()];
        request(&cert, &key, &[&names[..], &signer[..], &signer_key[..]].concat())?;
        Ok(Self { cert, key, ca })
    }
}

fn request(cert: &Path, key: &Path, more: &[&OsStr]) -> Result<(), Error> {
    const NEW: &str = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    let mut command = Command::new("openssl");
    command.args(NEW.split_whitespace()).args(more).arg("-keyout").arg(key).arg("-out").arg(cert);
    let output = command.output().map_err(io("running openssl"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io("making a certificate with openssl")(std::io::Error::other(said)))
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Io { what, source }
}

#[derive(Clone, Debug)]
struct User {
    name: String,
    password: String,
    rules: String,
}

impl Options {
    /// The default user wants this password (`requirepass`).
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Adds a user for clients, with rules such as `~edge:* +@all -@dangerous`; [`super::Redis::url`] names it.
    ///
    /// The default user then has a password too, a random one unless one is chosen, so that a client that forgets its
    /// own is turned away.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>, rules: impl Into<String>) -> Self {
        self.user = Some(User { name: name.into(), password: password.into(), rules: rules.into() });
        self
    }

    /// What happens when memory is short, `noeviction` by default.
    #[must_use]
    pub fn maxmemory_policy(mut self, policy: impl Into<String>) -> Self {
        self.maxmemory_policy = Some(policy.into());
        self
    }

    /// Speaks TLS only; clients need no certificate.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// A node that is to join a cluster.
    pub(super) fn clustered(mut self) -> Self {
        self.clustered = true;
        self
    }

    pub(super) fn is_clustered(&self) -> bool {
        self.clustered
    }

    /// Whose certificates to trust, where the server speaks TLS.
    pub(super) fn ca(&self) -> Option<PathBuf> {
        self.tls.as_ref().map(|tls| absolute(&tls.ca))
    }

    /// The default user's password, by which we operate the server.
    pub(super) fn operator_password(&self) -> Result<Option<String>, Error> {
        match (&self.password, &self.user) {
            (Some(chosen), _) => Ok(Some(chosen.clone())),
            (None, Some(_)) => random_word().map(Some).map_err(Error::io("reading /dev/urandom")),
            (None, None) => Ok(None),
        }
    }

    /// How clients connect.
    pub(super) fn url(&self, port: u16) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        let login = match (&self.user, &self.password) {
            (Some(user), _) => format!("{}:{}@", percent_encoded(&user.name), percent_encoded(&user.password)),
            (None, Some(password)) => format!(":{}@", percent_encoded(password)),
            (None, None) => String::new(),
        };
        format!("{scheme}://{login}127.0.0.1:{port}")
    }

    /// The settings file's text. A file rather than arguments: everybody can read those of a running process.
    pub(super) fn settings(&self, port: u16, directory: &Path, operator: Option<&str>) -> String {
        let mut text = String::new();
        let mut set = |name: &str, words: &[&[u8]]| {
            let words = words.iter().map(|word| quoted(word)).collect::<Vec<_>>();
            text.push_str(&format!("{name} {}\n", words.join(" ")));
        };
        set("bind", &[b"127.0.0.1"]);
        set("protected-mode", &[b"yes"]);
        set("daemonize", &[b"no"]);
        set("dir", &[directory.as_os_str().as_bytes()]);
        set("appendonly", &[b"yes"]);
        set("appendfsync", &[b"everysec"]);
        set("save", &[b""]);
        set("maxmemory-policy", &[self.maxmemory_policy.as_deref().unwrap_or("noeviction").as_bytes()]);
        let port = port.to_string();
        set("port", &[if self.tls.is_some() { b"0" } else { port.as_bytes() }]);
        if let Some(tls) = &self.tls {
            set("tls-port", &[port.as_bytes()]);
            set("tls-cert-file", &[absolute(&tls.cert).as_os_str().as_bytes()]);
            set("tls-key-file", &[absolute(&tls.key).as_os_str().as_bytes()]);
            set("tls-ca-cert-file", &[absolute(&tls.ca).as_os_str().as_bytes()]);
            set("tls-auth-clients", &[b"no"]);
        }
        if let Some(password) = operator {
            set("requirepass", &[password.as_bytes()]);
        }
        if let Some(user) = &self.user {
            let password = format!(">{}", user.password);
            let rules = user.rules.split_whitespace().map(str::as_bytes);
            let words = [user.name.as_bytes(), b"on", password.as_bytes()].into_iter().chain(rules);
            set("user", &words.collect::<Vec<_>>());
        }
        if self.clustered {
            set("cluster-enabled", &[b"yes"]);
            set("cluster-config-file", &[b"nodes.conf"]);
            set("cluster-node-timeout", &[b"2000"]);
        }
        text
    }
}

/// Paths in the settings file are relative to the server's folder, not to ours.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A word of a settings file: any bytes.
fn quoted(word: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in word {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text.push('"');
    text
}

/// A URL's user or password.
fn percent_encoded(word: &str) -> String {
    let mut text = String::new();
    for byte in word.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn random_word() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_so_that_none_becomes_a_setting() {
        assert_eq!(quoted(b"a b"), r#""a b""#);
        assert_eq!(quoted(b"a\"\\\nport 1"), r#""a\"\\\x0aport 1""#);
        assert_eq!(quoted("ä".as_bytes()), r#""\xc3\xa4""#);
        assert_eq!(quoted(b""), r#""""#);
    }

    #[test]
    fn urls_name_whom_clients_are_meant_to_be() {
        let open = Options::default();
        assert_eq!(open.url(7), "redis://127.0.0.1:7");
        let closed = open.password("p@ss/word");
        assert_eq!(closed.url(7), "redis://:p%40ss%2Fword@127.0.0.1:7");
        let files = || PathBuf::from("x.pem");
        let named = closed.user("edge", "a:b", "~*").tls(Tls { cert: files(), key: files(), ca: files() });
        assert_eq!(named.url(7), "rediss://edge:a%3Ab@127.0.0.1:7");
    }

    #[test]
    fn the_default_user_is_not_left_open_beside_another() {
        let options = Options::default();
        assert_eq!(options.operator_password().unwrap(), None);
        let options = options.user("edge", "secret", "~*");
        assert_eq!(options.operator_password().unwrap().unwrap().len(), 32);
        assert_ne!(options.operator_password().unwrap(), options.operator_password().unwrap());
        assert_eq!(options.password("chosen").operator_password().unwrap().unwrap(), "chosen");
    }
}
