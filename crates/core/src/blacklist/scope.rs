//! What a block is for, when it is not for everything.
//!
//! A driver too old for CUDA 12.8 serves 12.4 perfectly: blocking the machine would throw away
//! a good one, and not blocking it would try it again at every search. So that block names the
//! version that was asked for. It holds for that version and all later ones, since a driver
//! that cannot serve a version cannot serve a newer one.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A version of CUDA, e.g. 12.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CudaVersion {
    pub major: u8,
    pub minor: u8,
}

/// A text that is no scope or version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {1}")]
pub struct InvalidScope(String, &'static str);

impl InvalidScope {
    fn new(text: &str, what: &'static str) -> Self {
        Self(text.chars().take(80).collect(), what)
    }
}

impl FromStr for CudaVersion {
    type Err = InvalidScope;
    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        let invalid = || InvalidScope::new(text, "a CUDA version such as 12.8");
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { part.parse().ok() } else { None }
        };
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let major = number(major).ok_or_else(invalid)?;
        let minor = number(minor).ok_or_else(invalid)?;
        Ok(Self { major, minor })
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl TryFrom<String> for CudaVersion {
    type Error = InvalidScope;
    fn try_from(text: String) -> Result<Self, InvalidScope> {
        text.parse()
    }
}

impl From<CudaVersion> for String {
    fn from(version: CudaVersion) -> Self {
        version.to_string()
    }
}

/// What an entry blocks for; written `cuda=12.8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// Workloads that need this version of CUDA or a later one.
    Cuda(CudaVersion),
}

impl Scope {
    /// Whether a search that asks for `cuda` is blocked. One that asks for no version is not:
    /// the machine boots.
    pub fn covers(self, cuda: Option<CudaVersion>) -> bool {
        let Self::Cuda(blocked) = self;
        cuda.is_some_and(|asked| asked >= blocked)
    }
}

impl FromStr for Scope {
    type Err = InvalidScope;
    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        match text.split_once('=') {
            Some(("cuda", version)) => Ok(Self::Cuda(version.parse()?)),
            _ => Err(InvalidScope::new(text, "a scope such as cuda=12.8")),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Cuda(version) = self;
        write!(f, "cuda={version}")
    }
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;
    fn try_from(text: String) -> Result<Self, InvalidScope> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cuda(text: &str) -> CudaVersion {
        text.parse().expect(text)
    }

    #[test]
    fn a_block_holds_for_the_version_asked_for_and_later_ones() {
        let scope: Scope = "cuda=12.8".parse().expect("a scope");
        assert!(scope.covers(Some(cuda("12.8"))) && scope.covers(Some(cuda("13"))));
        assert!(!scope.covers(Some(cuda("12.4"))) && !scope.covers(None));
        assert!(cuda("12.10") > cuda("12.9"), "minors are numbers, not digits");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "cuda",
            "cuda=",
            "cuda=a.b",
            "cuda=12.",
            "rocm=6",
            "cuda=999.1",
            "cuda=+1.2",
            "cuda=1.2.3",
        ] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_scope_survives_its_text(major: u8, minor: u8) {
            let scope = Scope::Cuda(CudaVersion { major, minor });
            prop_assert_eq!(scope.to_string().parse::<Scope>(), Ok(scope));
        }

        #[test]
        fn any_text_is_an_answer(text in "\\PC{0,40}") {
            let _ = text.parse::<Scope>();
        }
    }
}
