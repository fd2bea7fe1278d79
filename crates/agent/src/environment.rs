//! The variables that the workload, its hooks and its probes run with.
//!
//! What an SSH session on this machine sees is what the machine's owner, or the image's author, meant to be
//! seen: a driver's libraries, a Python of its own. Not every SSH server gives it what `/etc/environment` says,
//! where hosts keep a container's variables, so that file adds what is missing. The search path is the one
//! variable that both have something to say about.

use dumont_wire::agent::Workload;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;

/// `PATH` where the session has none, and what says nothing where it has.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is true of the session alone, and of no workload that outlives it.
const OF_THE_SESSION: [&str; 11] = [
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "SSH_AUTH_SOCK",
    "SSH_ORIGINAL_COMMAND",
    "MAIL",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "TERM",
    "_",
];

type Variables = BTreeMap<OsString, OsString>;

/// The session's own, what `/etc/environment` adds, and above all what the workload asks for.
pub fn environment(workload: Option<&Workload>) -> Variables {
    let file = fs::read("/etc/environment").unwrap_or_default();
    let mut env = beside(std::env::vars_os().collect(), &String::from_utf8_lossy(&file));
    let own = workload.iter().flat_map(|w| &w.env);
    env.extend(own.map(|(k, v)| (k.into(), v.into())));
    env
}

fn beside(mut session: Variables, file: &str) -> Variables {
    session.retain(|name, value| !value.is_empty() && !OF_THE_SESSION.iter().any(|n| name == n));
    let mut env: Variables = file.lines().filter_map(assignment).collect();
    let path = search_path(
        session.remove(OsStr::new("PATH")).as_deref(),
        env.remove(OsStr::new("PATH")).as_deref(),
    );
    env.extend(session);
    env.insert("PATH".into(), path);
    env
}

/// Directories that only the session or only the file knows come first, in this order: who names one
/// means it. The usual ones tell nothing of who meant what.
fn search_path(session: Option<&OsStr>, file: Option<&OsStr>) -> OsString {
    let usual = || DEFAULT_PATH.split(':').map(OsString::from);
    let dirs = |path: Option<&OsStr>| -> Vec<OsString> {
        let split = std::env::split_paths(path.unwrap_or_default());
        split.map(OsString::from).filter(|d| !d.is_empty()).collect()
    };
    let (session, file) = (dirs(session), dirs(file));
    let special = session.iter().filter(|dir| !usual().any(|u| u == **dir));
    let mut all: Vec<OsString> = Vec::new();
    for dir in special.chain(&file).chain(&session) {
        if !all.contains(dir) {
            all.push(dir.clone());
        }
    }
    if all.is_empty() {
        all.extend(usual());
    }
    all.join(OsStr::new(":"))
}

/// One line as PAM reads it: `NAME=value`, perhaps quoted, perhaps with `export`.
fn assignment(line: &str) -> Option<(OsString, OsString)> {
    let line = line.trim();
    let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !named || value.contains('\0') {
        return None;
    }
    let unquoted = ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q))
        .unwrap_or(value);
    Some((name.into(), unquoted.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files_are_read_as_pam_does() {
        let read = |l: &str| assignment(l).map(|(k, v)| format!("{}={}", k.display(), v.display()));
        assert_eq!(read("A=1"), Some("A=1".into()));
        assert_eq!(read("  export B=\"x y=z\" "), Some("B=x y=z".into()));
        assert_eq!(read("C='q'"), Some("C=q".into()));
        assert_eq!(read("D="), Some("D=".into()));
        for noise in ["", "# A=1", "no assignment", "=x", "A B=1"] {
            assert_eq!(read(noise), None, "{noise:?}");
        }
    }

    fn run_with(session: &[(&str, &str)], file: &str) -> Vec<(String, String)> {
        let session = session.iter().map(|(k, v)| (k.into(), v.into())).collect();
        let text = |s: OsString| s.into_string().unwrap();
        let all = beside(session, file).into_iter();
        all.map(|(k, v)| (text(k), text(v))).collect()
    }

    fn path_of(session: &str, file: &str) -> String {
        let all = run_with(&[("PATH", session)], &format!("PATH=\"{file}\"\n"));
        all.into_iter().find(|(k, _)| k == "PATH").unwrap().1
    }

    #[test]
    fn a_session_passes_on_what_outlives_it() {
        let session = [
            ("HOME", "/lease"),
            ("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64"),
            ("SSH_CONNECTION", "10.0.0.1 4 10.0.0.2 22"),
            ("TERM", "xterm"),
            ("LANG", ""),
        ];
        let all = run_with(&session, "HOME=/root\nTZ=UTC\n");
        let expected = [
            ("HOME", "/lease"),
            ("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64"),
            ("PATH", DEFAULT_PATH),
            ("TZ", "UTC"),
        ];
        assert_eq!(all, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn the_search_path_is_that_of_whoever_has_something_to_say() {
        let (conda, venv) = (
            format!("/opt/conda/bin:{DEFAULT_PATH}"),
            format!("/opt/venv/bin:{DEFAULT_PATH}"),
        );
        // A container whose variables are in the file, for sessions that have only the usual.
        assert_eq!(path_of("/usr/bin:/bin", &conda), conda);
        assert_eq!(path_of(DEFAULT_PATH, &conda), conda);
        // A machine whose file is a distribution's, and whose sessions know more.
        let distribution = format!("{DEFAULT_PATH}:/usr/games");
        assert_eq!(path_of(&venv, &distribution), format!("{venv}:/usr/games"));
        // Both: the session is nearer to who logs in.
        assert_eq!(path_of(&venv, &conda), format!("/opt/venv/bin:{conda}"));
        assert_eq!(path_of("", ""), DEFAULT_PATH);
    }
}
