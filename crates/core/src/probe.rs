//! How to tell that a workload serves.
//!
//! Files that are back say nothing about a service that answers. A command covers everything
//! a shell can ask; the HTTP and the Ollama probe need nothing in the image (no curl), and
//! the Ollama one asks for what the user is really after: an inference with the restored
//! weights.

use crate::spec::InvalidSpec;
use serde::{Deserialize, Serialize};

/// Tried again and again until it succeeds or `timeout_s` is over.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// Healthy when the shell command exits 0.
    Command {
        #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 32768))]
        command: String,
        /// How long to keep trying, seconds.
        #[serde(default = "default_timeout")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400, default = default_timeout))]
        timeout_s: u32,
    },
    /// Healthy when `GET http://127.0.0.1:{port}{path}` on the machine answers as wanted.
    Http {
        #[cfg_attr(feature = "openapi", schema(minimum = 1))]
        port: u16,
        #[serde(default = "default_path")]
        #[cfg_attr(feature = "openapi", schema(default = default_path, pattern = "^/[!-\"$-~]*$", max_length = 4096))]
        path: String,
        /// The status to expect; none means any 2xx.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(minimum = 100, maximum = 599))]
        status: Option<u16>,
        /// Text that the body must hold.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096))]
        contains: Option<String>,
        #[serde(default = "default_timeout")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400, default = default_timeout))]
        timeout_s: u32,
    },
    /// Healthy when an Ollama server on the machine generates an answer with the model.
    Ollama {
        #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
        model: String,
        #[serde(default = "default_prompt")]
        #[cfg_attr(feature = "openapi", schema(default = default_prompt, min_length = 1, max_length = 32768))]
        prompt: String,
        /// Text that the answer must hold; none means that any answer will do.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096))]
        contains: Option<String>,
        #[serde(default = "default_ollama_port")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, default = default_ollama_port))]
        port: u16,
        #[serde(default = "default_ollama_timeout")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400, default = default_ollama_timeout))]
        timeout_s: u32,
    },
}

fn default_timeout() -> u32 {
    60
}
fn default_path() -> String {
    "/".into()
}
fn default_prompt() -> String {
    "Say ok.".into()
}
/// What Ollama listens on.
fn default_ollama_port() -> u16 {
    11434
}
/// The first answer waits for the weights to be loaded.
fn default_ollama_timeout() -> u32 {
    180
}

const COMMAND_MAX: usize = 32_768;
const TEXT_MAX: usize = 4096;

impl Probe {
    /// How long to keep trying, seconds.
    pub fn timeout_s(&self) -> u32 {
        match self {
            Self::Command { timeout_s, .. }
            | Self::Http { timeout_s, .. }
            | Self::Ollama { timeout_s, .. } => *timeout_s,
        }
    }

    /// Checks what types cannot.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        let bad = |field, problem: String| Err(InvalidSpec { field, problem });
        if !(1..=86_400).contains(&self.timeout_s()) {
            let problem = format!("{} is not between 1 and 86400 seconds", self.timeout_s());
            return bad("probe.timeout_s", problem);
        }
        match self {
            Self::Command { command, .. } => {
                if blank(command) || command.len() > COMMAND_MAX {
                    return bad("probe.command", "must be a shell command of at most 32 KB".into());
                }
            }
            Self::Http {
                port, path, status, ..
            } => {
                if *port == 0 {
                    return bad("probe.port", "0 is no port to ask".into());
                }
                if !path.starts_with('/')
                    || path.len() > TEXT_MAX
                    || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
                {
                    return bad(
                        "probe.path",
                        "must be the path of a URL, e.g. /health, with other characters as %XX".into(),
                    );
                }
                if status.is_some_and(|s| !(100..600).contains(&s)) {
                    return bad("probe.status", "must be an HTTP status, e.g. 200".into());
                }
            }
            Self::Ollama {
                model, prompt, port, ..
            } => {
                if *port == 0 {
                    return bad("probe.port", "0 is no port to ask".into());
                }
                if blank(model) || model.len() > 256 {
                    return bad("probe.model", "must be a model's name, e.g. llama3.2:1b".into());
                }
                if blank(prompt) || prompt.len() > COMMAND_MAX {
                    return bad("probe.prompt", "must be a prompt of at most 32 KB".into());
                }
            }
        }
        match self {
            Self::Http {
                contains: Some(text), ..
            }
            | Self::Ollama {
                contains: Some(text), ..
            } if text.is_empty() || text.len() > TEXT_MAX => bad(
                "probe.contains",
                "must be a text of at most 4 KB; leave it out to accept any".into(),
            ),
            _ => Ok(()),
        }
    }
}

fn blank(text: &str) -> bool {
    text.trim().is_empty() || text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<(), &'static str> {
        let probe: Probe = serde_json::from_str(json).map_err(|_| "json")?;
        probe.check().map_err(|e| e.field)
    }

    #[test]
    fn a_probe_needs_little_and_its_mistakes_are_named() {
        assert_eq!(check(r#"{"kind":"command","command":"true"}"#), Ok(()));
        assert_eq!(check(r#"{"kind":"http","port":8000}"#), Ok(()));
        assert_eq!(check(r#"{"kind":"ollama","model":"llama3.2:1b"}"#), Ok(()));
        for (json, field) in [
            (r#"{"kind":"command","command":" "}"#, "probe.command"),
            (
                r#"{"kind":"command","command":"true","timeout_s":0}"#,
                "probe.timeout_s",
            ),
            (r#"{"kind":"http","port":0}"#, "probe.port"),
            (r#"{"kind":"http","port":80,"path":"health"}"#, "probe.path"),
            (r#"{"kind":"http","port":80,"path":"/a b"}"#, "probe.path"),
            (r#"{"kind":"http","port":80,"path":"/\r\nX: y"}"#, "probe.path"),
            (r#"{"kind":"http","port":80,"status":99}"#, "probe.status"),
            (r#"{"kind":"http","port":80,"contains":""}"#, "probe.contains"),
            (r#"{"kind":"ollama","model":""}"#, "probe.model"),
            (r#"{"kind":"ollama","model":"m","prompt":""}"#, "probe.prompt"),
            (r#"{"kind":"ollama","model":"m","colour":"red"}"#, "json"),
            (r#"{"kind":"telepathy"}"#, "json"),
        ] {
            assert_eq!(check(json), Err(field), "{json}");
        }
    }
}
