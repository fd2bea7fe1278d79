//! Machines of the user's own: what is said of one, in a file or over the API.

use crate::id::MachineRef;
use crate::spec::InvalidSpec;
use serde::{Deserialize, Serialize};

/// What stands before the colon of such a machine.
pub const PROVIDER: &str = "ssh";

/// A machine that is reached by SSH and belongs to the user. Unknown fields are refused.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnMachine {
    /// `ssh:` and a name.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^ssh:[A-Za-z0-9._-]{1,100}$", example = "ssh:gpu1"))]
    pub machine: MachineRef,
    /// Name or address.
    #[cfg_attr(
        feature = "openapi",
        schema(pattern = "^[A-Za-z0-9._:][A-Za-z0-9._:-]{0,252}$")
    )]
    pub host: String,
    #[serde(default = "ssh_port")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65_535, default = ssh_port))]
    pub port: u16,
    /// Who logs in there.
    #[serde(default = "root")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[A-Za-z0-9._][A-Za-z0-9._-]{0,31}$", default = root))]
    pub user: String,
    /// The GPU's name as workspaces ask for it, e.g. `RTX 4090`; none fits only who asks for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[A-Za-z0-9._ -]{1,100}$"))]
    pub gpu: Option<String>,
    #[serde(default = "one")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 16, default = one))]
    pub gpu_count: u32,
    /// GB per GPU; 0 where nobody said it.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 100_000))]
    pub gpu_ram_gb: f64,
    /// Dollars per hour, if it is to be compared with rented ones.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 100_000))]
    pub price: f64,
    /// How many may live on it at once.
    #[serde(default = "one")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 16, default = one))]
    pub workspaces: u32,
    /// Its host key as one OpenSSH line; none is pinned on first contact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 8_192))]
    pub host_key: Option<String>,
    /// The directory that leases are put into, absolute; none is `.dumont-leases` in the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^/[A-Za-z0-9._/-]{1,1000}$"))]
    pub dir: Option<String>,
}

fn ssh_port() -> u16 {
    22
}
fn root() -> String {
    "root".into()
}
fn one() -> u32 {
    1
}

impl OwnMachine {
    pub fn name(&self) -> &str {
        &self.machine.machine_id
    }

    /// Checks what types cannot: all of it ends in dials, command lines and messages.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        let bad = |field, problem: &str| {
            let problem = format!("of {}: {problem}", self.machine);
            Err(InvalidSpec { field, problem })
        };
        let made_of = |text: &str, most: usize, more: &[u8]| {
            (1..=most).contains(&text.len())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        if self.machine.provider != PROVIDER {
            return bad(
                "machine",
                "a machine of your own is called ssh:NAME, e.g. ssh:gpu1",
            );
        }
        if !made_of(&self.host, 253, b"._:-") || self.host.starts_with('-') {
            return bad("host", "must be a name or an address");
        }
        if self.port == 0 {
            return bad("port", "must be 1 to 65535");
        }
        if !made_of(&self.user, 32, b"._-") || self.user.starts_with('-') {
            return bad("user", "must be the name of a user there");
        }
        if self
            .gpu
            .as_deref()
            .is_some_and(|g| !made_of(g, 100, b"._ -") || g.trim().is_empty())
        {
            return bad("gpu", "must be a name like RTX 4090");
        }
        if !(1..=16).contains(&self.gpu_count) {
            return bad("gpu_count", "must be 1 to 16");
        }
        for (field, number) in [("gpu_ram_gb", self.gpu_ram_gb), ("price", self.price)] {
            if !(0.0..=100_000.0).contains(&number) {
                return bad(field, "must be a number from 0 to 100000");
            }
        }
        if !(1..=16).contains(&self.workspaces) {
            return bad("workspaces", "must be 1 to 16");
        }
        let dir = self.dir.as_deref();
        if dir.is_some_and(|d| !made_of(d, 1001, b"._/-") || !d.starts_with('/') || d.len() < 2) {
            return bad("dir", "must be an absolute directory of plain characters");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<OwnMachine, String> {
        let machine: OwnMachine = serde_json::from_str(text).map_err(|e| e.to_string())?;
        machine.check().map_err(|e| e.to_string())?;
        Ok(machine)
    }

    #[test]
    fn a_name_and_a_host_are_enough() {
        let machine = read(r#"{"machine": "ssh:gpu1", "host": "10.0.0.5"}"#).unwrap();
        assert_eq!(
            (machine.name(), machine.port, machine.user.as_str()),
            ("gpu1", 22, "root")
        );
        assert_eq!(
            (machine.workspaces, machine.gpu_count, machine.price),
            (1, 1, 0.0)
        );
    }

    #[test]
    fn what_could_be_an_option_or_a_command_is_refused() {
        for (field, value) in [
            ("host", r#""-oProxyCommand=x""#),
            ("host", r#""a b""#),
            ("host", r#""""#),
            ("user", r#""$(id)""#),
            ("user", r#""-l""#),
            ("dir", r#""/a'b""#),
            ("dir", r#""relative""#),
            ("dir", r#""/""#),
            ("machine", r#""vast:1""#),
            ("gpu", r#"" ""#),
            ("gpu_count", "0"),
            ("workspaces", "17"),
            ("price", "-1"),
            ("unknown", "1"),
        ] {
            let mut all = serde_json::json!({ "machine": "ssh:a", "host": "h" });
            all[field] = serde_json::from_str(value).unwrap();
            assert!(read(&all.to_string()).is_err(), "{field} {value}");
        }
    }
}
