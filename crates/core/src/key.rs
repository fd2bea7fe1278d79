//! The key of an encrypted workspace.
//!
//! It is made by the controller, kept by it, and given to the workspace's own machines and to
//! whoever may read its snapshots. It never shows in a log: `Debug` hides it, and there is no
//! `Display`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// 256 random bits; as text 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkspaceKey(pub [u8; 32]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a workspace's key is 64 hexadecimal digits")]
pub struct InvalidKey;

impl WorkspaceKey {
    pub fn to_text(&self) -> String {
        crate::id::Digest(self.0).to_string()
    }
}

impl fmt::Debug for WorkspaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkspaceKey(hidden)")
    }
}

impl FromStr for WorkspaceKey {
    type Err = InvalidKey;
    /// White space around it is left out: files end in a line end.
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let digest: crate::id::Digest = text.trim().parse().map_err(|_| InvalidKey)?;
        Ok(Self(digest.0))
    }
}

impl TryFrom<String> for WorkspaceKey {
    type Error = InvalidKey;
    fn try_from(text: String) -> Result<Self, InvalidKey> {
        text.parse()
    }
}

impl From<WorkspaceKey> for String {
    fn from(key: WorkspaceKey) -> Self {
        key.to_text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_through_text_and_never_shows() {
        let key = WorkspaceKey([0xab; 32]);
        assert_eq!(format!("{}\n", key.to_text()).parse(), Ok(key.clone()));
        assert!(!format!("{key:?}").contains("ab"));
        let wrong = "ab".parse::<WorkspaceKey>().unwrap_err();
        assert!(!wrong.to_string().contains("ab "));
    }
}
