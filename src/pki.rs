//! The deployment's own certificate authority, and the certificates by which planes know each other.

use crate::private;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use turnpike_config::link::{Role, domain};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority is valid.
const AUTHORITY_DAYS: u32 = 3650;
/// Certificates are valid from a little earlier, for clocks that differ.
const CLOCK_SLACK: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// Longest label of a DNS name.
const MAX_LABEL: usize = 63;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// There is no authority in the directory.
    #[error("{0} holds no authority (ca.pem and ca.key); make one with: turnpike certs init --dir {0}")]
    NoAuthority(String),
    /// There is one already.
    #[error("{0} already holds an authority (ca.pem); certificates signed by it would become worthless")]
    AuthorityExists(String),
    /// There is one already.
    #[error("{0} already holds a signing key (signing.key); edges that trust it would refuse what another signs")]
    SigningKeyExists(String),
    /// Not a name that fits into a certificate.
    #[error("«{0}» cannot be a process's name: use a-z, 0-9, - and . in labels of 1 to 63, such as fra-1")]
    Name(String),
    /// Not a host name that may be added.
    #[error("«{0}» cannot be added as a host: expected a DNS name or an IP address outside turnpike.internal")]
    Host(String),
    /// The authority's files or the certificate are not right.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// A certificate's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// The authority's certificate.
    pub(crate) ca: PathBuf,
    /// The certificate.
    pub(crate) cert: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    /// What the process is.
    pub(crate) role: Role,
    /// Which one it is; for a control plane, only its files are called so.
    pub(crate) name: &'a str,
    /// Further DNS names and IP addresses at which clients reach it.
    pub(crate) hosts: &'a [String],
    /// How long it is valid.
    pub(crate) days: u32,
}

/// A certificate authority that lies in a directory as `ca.pem` and `ca.key`.
pub(crate) struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one; refuses to replace one.
    pub(crate) fn create(directory: &Path) -> Result<Self, Error> {
        let (certificate_file, key_file) = authority_files(directory);
        if certificate_file.exists() {
            return Err(Error::AuthorityExists(directory.display().to_string()));
        }
        private::directory(directory, 0o700)?;
        let key = KeyPair::generate()?;
        let mut params = valid_for(AUTHORITY_DAYS);
        params.distinguished_name = common_name("Turnpike authority");
        // It signs processes, never another authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        // The key first: an authority is there once its certificate is.
        private::write(&key_file, key.serialize_pem())?;
        private::write(&certificate_file, certificate.pem())?;
        Ok(Self { directory: directory.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Opens the one in `directory`.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        let (certificate_file, key_file) = authority_files(directory);
        let files = (private::read(&certificate_file)?, private::read(&key_file)?);
        let (Some(certificate), Some(key)) = files else {
            return Err(Error::NoAuthority(directory.display().to_string()));
        };
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        Ok(Self { directory: directory.to_owned(), issuer })
    }

    /// Opens the one in `directory`, or makes it.
    pub(crate) fn open_or_create(directory: &Path) -> Result<Self, Error> {
        if authority_files(directory).0.exists() { Self::open(directory) } else { Self::create(directory) }
    }

    /// Signs a certificate for a process and writes `NAME.pem` and `NAME.key` beside the authority's files.
    pub(crate) fn issue(&self, subject: &Subject<'_>) -> Result<Files, Error> {
        let name = subject.name;
        if name == "ca" || !name.split('.').all(is_label) {
            return Err(Error::Name(name.to_owned()));
        }
        let mut params = valid_for(subject.days);
        let own = domain(subject.role, name);
        params.distinguished_name = common_name(&own);
        params.subject_alt_names = vec![SanType::DnsName(own.as_str().try_into()?)];
        for host in subject.hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every process both accepts and makes connections.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = Files {
            ca: authority_files(&self.directory).0,
            cert: self.directory.join(format!("{name}.pem")),
            key: self.directory.join(format!("{name}.key")),
        };
        private::write(&files.key, key.serialize_pem())?;
        private::write(&files.cert, certificate.pem())?;
        Ok(files)
    }
}

/// The key by which edges know what the control plane tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SigningFiles {
    /// Private, for the control plane.
    pub(crate) key: PathBuf,
    /// Public, for edges.
    pub(crate) public: PathBuf,
}

impl SigningFiles {
    /// Where they lie in a directory.
    fn in_directory(directory: &Path) -> Self {
        Self { key: directory.join("signing.key"), public: directory.join("signing.pub") }
    }

    /// Makes a new pair; refuses to replace one.
    pub(crate) fn create(directory: &Path) -> Result<Self, Error> {
        let files = Self::in_directory(directory);
        if files.key.exists() {
            return Err(Error::SigningKeyExists(directory.display().to_string()));
        }
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        // The public half first: a pair is there once its key is.
        private::write(&files.public, key.public_key_pem())?;
        private::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }

    /// Those in a directory, made if there are none.
    pub(crate) fn open_or_create(directory: &Path) -> Result<Self, Error> {
        let files = Self::in_directory(directory);
        if files.key.exists() { Ok(files) } else { Self::create(directory) }
    }
}

fn authority_files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("ca.pem"), directory.join("ca.key"))
}

fn valid_for(days: u32) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (now + DAY * days).into();
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    // The field takes at most 64 characters; who a process is stands in its DNS name.
    distinguished.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    distinguished
}

fn is_label(label: &str) -> bool {
    let clean = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(clean)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn host_name(host: &str) -> Result<SanType, Error> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let lower = host.to_ascii_lowercase();
    // A name in there is an identity; hosts must not smuggle in a second one.
    let refused = || Error::Host(host.to_owned());
    if lower.ends_with("turnpike.internal") || !lower.split('.').all(is_label) {
        return Err(refused());
    }
    Ok(SanType::DnsName(lower.as_str().try_into().map_err(|_| refused())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
    use turnpike_config::link::{Identity, LinkServer, Peer, TlsFiles, connect};
    use turnpike_config::signing::{Signer, Trust};

    fn identity(files: Files) -> Identity {
        Identity::load(&TlsFiles { ca: files.ca, cert: files.cert, key: files.key }).unwrap()
    }

    fn subject(role: Role, name: &str) -> Subject<'_> {
        Subject { role, name, hosts: &[], days: 30 }
    }

    #[tokio::test]
    async fn processes_of_one_authority_recognise_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path()).unwrap();
        let control = identity(authority.issue(&subject(Role::Control, "control")).unwrap());
        // A second process, later, from the files.
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let edge = identity(authority.issue(&subject(Role::Edge, "fra.1")).unwrap());
        assert_eq!(edge.own().unwrap(), Peer { role: Role::Edge, name: "fra.1".to_owned() });

        let server = LinkServer::bind(([127, 0, 0, 1], 0).into(), &control).unwrap();
        let address = server.local_addr().unwrap().to_string();
        let accept = async { LinkServer::authenticate(server.accept().await.unwrap()).await };
        let (accepted, connected) = tokio::join!(accept, connect(&address, &edge));
        assert_eq!(accepted.unwrap().0.name, "fra.1");
        connected.unwrap();
    }

    #[test]
    fn a_signing_key_is_what_both_planes_read_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let files = SigningFiles::open_or_create(dir.path()).unwrap();
        assert_eq!(SigningFiles::open_or_create(dir.path()).unwrap(), files);
        assert!(matches!(SigningFiles::create(dir.path()), Err(Error::SigningKeyExists(_))));
        let private = PrivatePkcs8KeyDer::from_pem_file(&files.key).unwrap();
        let public = SubjectPublicKeyInfoDer::from_pem_file(&files.public).unwrap();
        let mut trust = Trust::default();
        trust.add_spki(&public).unwrap();
        assert_eq!(Signer::from_pkcs8(private.secret_pkcs8_der()).unwrap().trust(), trust);
    }

    #[test]
    fn an_authority_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Authority::open(dir.path()), Err(Error::NoAuthority(_))));
        Authority::create(dir.path()).unwrap();
        assert!(matches!(Authority::create(dir.path()), Err(Error::AuthorityExists(_))));
    }

    #[test]
    fn names_and_hosts_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path()).unwrap();
        for bad in ["", "ca", "Upper", "a..b", "-a", "a/b", &"x".repeat(64)] {
            assert!(matches!(authority.issue(&subject(Role::Edge, bad)), Err(Error::Name(_))), "{bad:?} was accepted");
        }
        for (host, good) in [
            ("10.0.0.1", true),
            ("::1", true),
            ("Node.example.com", true),
            ("a b", false),
            ("x.node.turnpike.internal", false),
        ] {
            let hosts = [host.to_owned()];
            let issued = authority.issue(&Subject { hosts: &hosts, ..subject(Role::Node, "n1") });
            assert_eq!(issued.is_ok(), good, "{host}");
        }
    }
}
