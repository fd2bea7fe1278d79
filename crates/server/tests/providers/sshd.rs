//! OpenSSH's server on a loopback port, for the user who runs the test.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Sshd {
    dir: TempDir,
    pub port: u16,
    listener: Option<Child>,
}

impl Sshd {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("home/.ssh")).unwrap();
        if rustix::process::getuid().is_root() {
            // Where the package did not make it, as its service does at each start.
            let _ = fs::create_dir_all("/run/sshd");
        }
        let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut sshd = Self {
            dir,
            port,
            listener: None,
        };
        sshd.new_host_key();
        sshd.start();
        sshd
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn authorized_keys(&self) -> PathBuf {
        self.home().join(".ssh/authorized_keys")
    }

    pub fn let_in(&self, line: &str) {
        fs::write(self.authorized_keys(), format!("{line}\n")).unwrap();
    }

    /// As after an installation anew; in force from the next connection on.
    pub fn new_host_key(&self) {
        let path = self.dir.path().join("host_key");
        let _ = fs::remove_file(&path);
        dumont_server::ssh::load_or_create(&path).unwrap();
    }

    /// What its `nvidia-smi` shows.
    pub fn has_gpu(&self) {
        let bin = self.dir.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let script = "#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564, 550.54.14'\n";
        fs::write(bin.join("nvidia-smi"), script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(bin.join("nvidia-smi"), mode).unwrap();
    }

    pub fn start(&mut self) {
        let dir = self.dir.path();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             SetEnv HOME={} PATH={}:/usr/local/bin:/usr/bin:/bin\n",
            self.port,
            dir.join("host_key").display(),
            self.authorized_keys().display(),
            self.home().display(),
            dir.join("bin").display(),
        );
        fs::write(dir.join("sshd_config"), config).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("/usr/sbin/sshd: scripts/setup --tests installs it");
        self.listener = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As when the power fails: what runs there ends, connections included.
    pub fn die(mut self) {
        let parent = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit(") ").next()?.split(' ').nth(1)?.parse::<u32>().ok()
        };
        let mut sessions = vec![self.listener.as_ref().unwrap().id()];
        // A connection is served by a child of the listener's, or by that one's.
        for _ in 0..3 {
            let of = |pid: &u32| parent(*pid).is_some_and(|p| sessions.contains(&p));
            let more: Vec<u32> = processes()
                .filter(of)
                .filter(|pid| !sessions.contains(pid))
                .collect();
            sessions.extend(more);
        }
        self.stop();
        sessions.into_iter().for_each(kill);
    }

    /// Nobody is let in any more; who is in stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.listener.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Sshd {
    /// What was started there goes with it.
    fn drop(&mut self) {
        self.stop();
        let dir = self.dir.path().as_os_str().as_encoded_bytes();
        let here = |pid: &u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.windows(dir.len()).any(|part| part == dir)
        };
        processes().filter(here).for_each(kill);
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}
