//! Certificates: loading them, and reading who a peer is.

use super::LinkError;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// DNS name in a control plane's certificate.
pub const CONTROL_DOMAIN: &str = "control.turnpike.internal";
const SUFFIX: &str = ".turnpike.internal";

/// What a peer is in the deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A control plane.
    Control,
    /// An edge proxy.
    Edge,
    /// A node agent.
    Node,
}

/// DNS name in the certificate of the edge or node called `name`.
pub fn domain(role: Role, name: &str) -> String {
    match role {
        Role::Control => CONTROL_DOMAIN.to_owned(),
        Role::Edge => format!("{name}.edge{SUFFIX}"),
        Role::Node => format!("{name}.node{SUFFIX}"),
    }
}

/// An authenticated peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// What it is.
    pub role: Role,
    /// Which one; `control` for a control plane.
    pub name: String,
}

impl Peer {
    /// Reads the peer's role and name from its (already verified) certificate.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, LinkError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| LinkError::Stranger)?;
        let names = parsed.subject_alternative_name().ok().flatten().ok_or(LinkError::Stranger)?;
        names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::DNSName(dns) => Self::from_domain(dns),
                _ => None,
            })
            .ok_or(LinkError::Stranger)
    }

    fn from_domain(dns: &str) -> Option<Self> {
        let local = dns.strip_suffix(SUFFIX)?;
        if local == "control" {
            return Some(Self { role: Role::Control, name: local.to_owned() });
        }
        let (name, role) = local.rsplit_once('.')?;
        let role = match role {
            "edge" => Role::Edge,
            "node" => Role::Node,
            _ => return None,
        };
        (!name.is_empty()).then(|| Self { role, name: name.to_owned() })
    }
}

/// Where a process's certificate, its key and the deployment's authority lie, PEM each.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// This process's certificate (chain).
    pub cert: PathBuf,
    /// This process's private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads `tls.ca`, `tls.cert` and `tls.key`.
    pub fn from_fields(fields: &mut crate::settings::Fields<'_>) -> Option<Self> {
        let (ca, cert, key) = (fields.required("tls.ca"), fields.required("tls.cert"), fields.required("tls.key"));
        Some(Self { ca: ca?, cert: cert?, key: key? })
    }
}

/// A loaded certificate with its key and the authority that all peers must be signed by.
#[derive(Debug)]
pub struct Identity {
    /// Authorities, normally one.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Own certificate, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Loads the three files.
    pub fn load(files: &TlsFiles) -> Result<Self, LinkError> {
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| file_error(&files.key, &e))?;
        Ok(Self { authorities: certificates(&files.ca)?, chain: certificates(&files.cert)?, key })
    }

    /// A certificate that was made just now, with its PKCS#8 key.
    pub fn new(
        authority: CertificateDer<'static>,
        certificate: CertificateDer<'static>,
        key: rustls_pki_types::PrivatePkcs8KeyDer<'static>,
    ) -> Self {
        Self { authorities: vec![authority], chain: vec![certificate], key: key.into() }
    }

    /// Who this process is, by its own certificate.
    pub fn own(&self) -> Result<Peer, LinkError> {
        self.chain.first().map_or(Err(LinkError::Stranger), Peer::from_certificate)
    }

    /// The private key, DER.
    pub fn key_der(&self) -> &[u8] {
        self.key.secret_der()
    }

    /// TLS for accepting peers; every peer must show a certificate of the authority.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<rustls::ServerConfig, LinkError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), Arc::clone(&provider))
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// TLS for connecting to peers; shows this process's certificate.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<rustls::ClientConfig, LinkError> {
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(self.roots()?)
                .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore, LinkError> {
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            roots.add(authority.clone())?;
        }
        Ok(roots)
    }
}

/// A certificate chain with its key, ready to be shown to TLS clients, PEM each.
pub fn load_certified_key(cert: &Path, key: &Path) -> Result<CertifiedKey, LinkError> {
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| file_error(key, &e))?;
    CertifiedKey::from_der(chain, private, &rustls::crypto::ring::default_provider())
        .map_err(|e| file_error(key, &format_args!("does not go with {}: {e}", cert.display())))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|e| file_error(path, &e))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|e| file_error(path, &e))?;
    if found.is_empty() {
        return Err(LinkError::File { path: path.display().to_string(), reason: "holds no certificate".to_owned() });
    }
    Ok(found)
}

fn file_error(path: &Path, reason: &dyn std::fmt::Display) -> LinkError {
    LinkError::File { path: path.display().to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_says_who_its_bearer_is() {
        let peer = |role, name: &str| Some(Peer { role, name: name.to_owned() });
        assert_eq!(Peer::from_domain("control.turnpike.internal"), peer(Role::Control, "control"));
        assert_eq!(Peer::from_domain(&domain(Role::Edge, "eu.1")), peer(Role::Edge, "eu.1"));
        assert_eq!(Peer::from_domain(&domain(Role::Node, "n1")), peer(Role::Node, "n1"));
        for stranger in
            ["edge.turnpike.internal", "a.admin.turnpike.internal", "a.edge.example.com", ".edge.turnpike.internal"]
        {
            assert_eq!(Peer::from_domain(stranger), None, "{stranger}");
        }
    }
}
