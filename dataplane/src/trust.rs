//! Whose signatures count.

use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use std::path::Path;
use turnpike_config::signing::Trust;

/// Reads public keys, PEM; says what is wrong with the file if it does not do.
pub(crate) fn load(path: &Path) -> Result<Trust, String> {
    let failed = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let mut trust = Trust::default();
    for key in SubjectPublicKeyInfoDer::pem_file_iter(path).map_err(|e| failed(&e))? {
        trust.add_spki(&key.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    }
    if trust == Trust::default() {
        return Err(failed(&"holds no PUBLIC KEY"));
    }
    Ok(trust)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_what_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("signing.pem");
        assert!(load(&path).unwrap_err().contains("signing.pem"));
        std::fs::write(&path, "").unwrap();
        assert!(load(&path).unwrap_err().contains("holds no PUBLIC KEY"));
        let pem = |key: rcgen::KeyPair| key.public_key_pem();
        let ours = pem(rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
        std::fs::write(&path, &ours).unwrap();
        let one = load(&path).unwrap();
        let next = pem(rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
        std::fs::write(&path, ours + &next).unwrap();
        assert_ne!(load(&path).unwrap(), one, "two while keys are exchanged");
        let other = pem(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
        std::fs::write(&path, other).unwrap();
        assert!(load(&path).unwrap_err().contains("Ed25519"));
    }
}
