//! The controller's own SSH key.

use russh::keys::{Algorithm, PrivateKey, PublicKey, ssh_key::LineEnding};
use std::io;
use std::path::Path;

/// Reads the key at `path`, or makes one that only its owner can read.
pub fn load_or_create(path: &Path) -> io::Result<PrivateKey> {
    let bad = |e: &dyn std::fmt::Display| {
        io::Error::other(format!(
            "{}: {e}; move it away and a new key is made",
            path.display()
        ))
    };
    if path.exists() {
        return russh::keys::load_secret_key(path, None).map_err(|e| bad(&e));
    }
    let mut key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(|e| bad(&e))?;
    key.set_comment("dumont");
    let text = key.to_openssh(LineEnding::LF).map_err(|e| bad(&e))?;
    crate::files::write_private(path, text.as_bytes())?;
    Ok(key)
}

/// The public half as one OpenSSH line.
pub fn public_line(key: &PublicKey) -> Result<String, russh::keys::ssh_key::Error> {
    key.to_openssh()
}
