//! The CLI's own SSH key: one per data directory, made on first use, never sent anywhere.

use crate::config::{private_dir, read_if_there, write_private};
use anyhow::{Context, Result};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{PrivateKey, PublicKey};
use std::path::{Path, PathBuf};

/// A private key file and its public line.
#[derive(Debug)]
pub struct Key {
    pub file: PathBuf,
    /// `ssh-ed25519 AAAA… dumont-cli`
    pub public: String,
}

/// The key below `dir`, made if there is none.
pub fn ensure(dir: &Path) -> Result<Key> {
    private_dir(dir)?;
    let file = dir.join("id_ed25519");
    let key = match read_if_there(&file)? {
        Some(text) => PrivateKey::from_openssh(text.as_bytes()).with_context(|| {
            format!(
                "{} is not an OpenSSH private key; move it away and a new one is made",
                file.display()
            )
        })?,
        None => make(&file)?,
    };
    let public = PublicKey::from(&key).to_openssh()?;
    Ok(Key { file, public })
}

fn make(file: &Path) -> Result<PrivateKey> {
    let pair = Ed25519Keypair::from_seed(&rand::random::<[u8; 32]>());
    let key = PrivateKey::new(KeypairData::from(pair), "dumont-cli")?;
    write_private(file, &key.to_openssh(LineEnding::LF)?)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_only_the_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(&dir.path().join("ssh")).unwrap();
        let second = ensure(&dir.path().join("ssh")).unwrap();
        assert_eq!(first.public, second.public);
        assert!(first.public.starts_with("ssh-ed25519 AAAA"), "{}", first.public);
        let mode = std::fs::metadata(&first.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&first.file, "nonsense").unwrap();
        let e = format!("{:#}", ensure(&dir.path().join("ssh")).unwrap_err());
        assert!(e.contains("move it away"), "{e}");
    }
}
