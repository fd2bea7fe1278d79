//! Names of things: typed, bounded, checked at the edge.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What was wrong with a name, and what a right one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    /// The kind of name, e.g. "workspace name".
    pub what: &'static str,
    /// The value as given, cut to 80 characters.
    pub value: String,
    /// The rule it breaks, as an instruction.
    pub rule: &'static str,
}

impl InvalidName {
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self {
            what,
            value: value.chars().take(80).collect(),
            rule,
        }
    }
}

/// One physical host at a provider, written `vast:12345`: the unit of history.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineRef {
    pub provider: String,
    pub machine_id: String,
}

impl MachineRef {
    /// Both parts are 1 to 50 and 1 to 100 characters of `A-Z a-z 0-9 . _ -`.
    pub fn new(provider: &str, machine_id: &str) -> Result<Self, InvalidName> {
        const RULE: &str = "write provider:machine, e.g. vast:12345 (letters, digits, '.', '_', '-')";
        let ok = |s: &str, max: usize| {
            !s.is_empty()
                && s.len() <= max
                && s.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if ok(provider, 50) && ok(machine_id, 100) {
            Ok(Self {
                provider: provider.into(),
                machine_id: machine_id.into(),
            })
        } else {
            Err(InvalidName::new(
                "machine",
                &format!("{provider}:{machine_id}"),
                RULE,
            ))
        }
    }
}

impl fmt::Display for MachineRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.provider, self.machine_id)
    }
}

impl FromStr for MachineRef {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (provider, machine_id) = s.split_once(':').unwrap_or((s, ""));
        Self::new(provider, machine_id)
    }
}

impl TryFrom<String> for MachineRef {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<MachineRef> for String {
    fn from(m: MachineRef) -> Self {
        m.to_string()
    }
}

/// A workspace's name: what the user types. Lower-case letters, digits and dashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkspaceName(String);

impl WorkspaceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkspaceName {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let inner = s
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if inner && (1..=40).contains(&s.len()) && !s.starts_with('-') && !s.ends_with('-') {
            Ok(Self(s.into()))
        } else {
            Err(InvalidName::new(
                "workspace name",
                s,
                "use 1 to 40 lower-case letters, digits and inner dashes, e.g. llama-train",
            ))
        }
    }
}

impl TryFrom<String> for WorkspaceName {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<WorkspaceName> for String {
    fn from(n: WorkspaceName) -> Self {
        n.0
    }
}

impl fmt::Display for WorkspaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A 256-bit BLAKE3 digest, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || InvalidName::new("digest", s, "64 hexadecimal digits");
        if s.len() != 64 || !s.is_ascii() {
            return Err(bad());
        }
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(out))
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> Self {
        d.to_string()
    }
}

/// The label that marks an instance as ours and names the one rent it belongs to:
/// `dumont/{controller}/{workspace}/{attempt}`. An uncertain create is found again by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RentLabel {
    pub controller: String,
    pub workspace: String,
    pub attempt: String,
}

impl RentLabel {
    const PREFIX: &'static str = "dumont";

    /// `None` for a label that is not ours.
    pub fn parse(label: &str) -> Option<Self> {
        let mut parts = label.trim().split('/');
        if parts.next() != Some(Self::PREFIX) {
            return None;
        }
        let mut next = || parts.next().filter(|p| !p.is_empty()).map(str::to_owned);
        let out = Self {
            controller: next()?,
            workspace: next()?,
            attempt: next()?,
        };
        parts.next().is_none().then_some(out)
    }
}

impl fmt::Display for RentLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}/{}",
            Self::PREFIX,
            self.controller,
            self.workspace,
            self.attempt
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_refs_round_trip_and_refuse_nonsense() {
        let m: MachineRef = "vast:12345".parse().unwrap();
        assert_eq!(m.to_string(), "vast:12345");
        for bad in [
            "",
            ":",
            "vast",
            "vast:",
            ":1",
            "vast:1:2",
            "vast:a/b",
            "va st:1",
            "vast:\u{e9}",
        ] {
            assert!(bad.parse::<MachineRef>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn labels_round_trip_and_foreign_ones_are_not_ours() {
        let l = RentLabel {
            controller: "c1".into(),
            workspace: "w1".into(),
            attempt: "01A".into(),
        };
        assert_eq!(RentLabel::parse(&l.to_string()), Some(l));
        for foreign in [
            "",
            "unit-a",
            "dumont/",
            "dumont/a/b",
            "dumont/a//c",
            "dumont/a/b/c/d",
        ] {
            assert_eq!(RentLabel::parse(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn digests_refuse_multibyte_input_without_panic() {
        let tricky = "é".repeat(32);
        assert!(tricky.parse::<Digest>().is_err());
    }
}
