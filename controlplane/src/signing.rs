//! The key by which edges know what this deployment tells them.

use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use std::path::{Path, PathBuf};
use turnpike_config::signing::Signer;

/// The key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("signing.key {}: {reason}; make one with: turnpike certs signing --dir DIR", path.display())]
pub(crate) struct BadKeyFile {
    path: PathBuf,
    reason: String,
}

/// Reads an Ed25519 private key, PKCS#8 PEM.
pub(crate) fn load(path: &Path) -> Result<Signer, BadKeyFile> {
    let bad = |reason: String| BadKeyFile { path: path.to_owned(), reason };
    let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| bad(error.to_string()))?;
    Signer::from_pkcs8(der.secret_pkcs8_der()).map_err(|error| bad(error.to_string()))
}
