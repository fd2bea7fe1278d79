//! What lies on the disk of a machine before its first process runs.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Kind, Spec, nvidia_smi};
use crate::error::MachineError;

const PASSWD: &str = "root:x:0:0:root:/root:SHELL\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// The directory that the renter calls `/workspace`, as the host sees it.
pub fn workspace(dir: &Path) -> PathBuf {
    dir.join("workspace")
}

/// Makes the tree; an instance that is started again keeps what it wrote.
pub(super) fn lay_out(spec: &Spec) -> Result<(), MachineError> {
    write_tree(spec).map_err(MachineError::io("lay out the machine's disk"))
}

fn write_tree(spec: &Spec) -> io::Result<()> {
    let dir = &spec.dir;
    for part in ["mnt", "etc", "root", "tmp", "workspace", "opt/nvidia/bin"] {
        fs::create_dir_all(dir.join(part))?;
    }
    if let Some((volume, path)) = &spec.volume {
        fs::create_dir_all(volume)?;
        // In namespaces it is mounted; without them, below the directory that stands for the root.
        let at = dir.join(path.trim_start_matches('/'));
        if spec.kind == Kind::Directory && !at.exists() {
            if let Some(above) = at.parent() {
                fs::create_dir_all(above)?;
            }
            std::os::unix::fs::symlink(volume, at)?;
        }
    }
    fs::set_permissions(dir.join("root"), fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let etc = dir.join("etc");
    fs::write(etc.join("passwd"), PASSWD.replace("SHELL", shell(spec)))?;
    fs::write(etc.join("group"), GROUP)?;
    fs::write(etc.join("nsswitch.conf"), NSSWITCH)?;
    fs::write(
        etc.join("hosts"),
        format!("127.0.0.1 localhost C.{}\n::1 localhost\n", spec.instance),
    )?;
    fs::write(etc.join("hostname"), format!("C.{}\n", spec.instance))?;
    fs::write(etc.join("environment"), environment_file(&spec.env))?;
    for name in [
        "resolv.conf",
        "ld.so.cache",
        "ld.so.conf",
        "localtime",
        "os-release",
        "protocols",
        "services",
    ] {
        // Whatever the host has; none of them is needed to run.
        let _ = fs::copy(Path::new("/etc").join(name), etc.join(name));
    }
    if let Some(onstart) = &spec.onstart {
        executable(&dir.join("root/onstart.sh"), onstart)?;
    }
    executable(
        &dir.join("opt/nvidia/bin/nvidia-smi"),
        &nvidia_smi::script(&spec.gpus),
    )
}

fn executable(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// `/etc/environment`: what makes the renter's variables visible over SSH.
fn environment_file(env: &[(String, String)]) -> String {
    // Keys that start with a dash are docker options ("-p 8000:8000"), no variables.
    env.iter()
        .filter(|(k, _)| !k.starts_with('-') && !k.is_empty() && !k.contains(['=', '\n', '\0']))
        .map(|(k, v)| format!("{k}={}\n", v.replace(['\n', '\0'], " ")))
        .collect()
}

/// Read at each login, as sshd does: the renter may have written to it since.
pub(super) fn login_environment(dir: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(dir.join("etc/environment")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim().trim_start_matches("export ").split_once('='))
        .filter(|(k, _)| !k.is_empty() && !k.starts_with('#'))
        .map(|(k, v)| (k.to_owned(), unquote(v).to_owned()))
        .collect()
}

fn unquote(value: &str) -> &str {
    let inner = |q: char| value.strip_prefix(q).and_then(|v| v.strip_suffix(q));
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

pub(super) fn shell(spec: &Spec) -> &'static str {
    if spec.busybox { "/bin/sh" } else { "/bin/bash" }
}

pub(super) fn home(spec: &Spec) -> PathBuf {
    match spec.kind {
        Kind::Directory => spec.dir.join("root"),
        _ => PathBuf::from("/root"),
    }
}

pub(super) fn search_path(spec: &Spec) -> String {
    let bin = match spec.kind {
        Kind::Directory => spec.dir.join("opt/nvidia/bin"),
        _ => PathBuf::from("/opt/nvidia/bin"),
    };
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        bin.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_keeps_variables_and_drops_docker_options() {
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let env = pairs(&[("A", "b c"), ("-p 8000:8000", "1"), ("-h", "box"), ("M", "x\ny")]);
        assert_eq!(environment_file(&env), "A=b c\nM=x y\n");
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("etc")).expect("mkdir");
        fs::write(
            dir.path().join("etc/environment"),
            "A=b c\n# no\nexport Q=\"z\"\nbad\n",
        )
        .expect("write");
        assert_eq!(login_environment(dir.path()), pairs(&[("A", "b c"), ("Q", "z")]));
    }
}
