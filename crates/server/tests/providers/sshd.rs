//! OpenSSH's server on a loopback port, for the user who runs the test.

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

    pub fn start(&mut self) {
        let dir = self.dir.path();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nSetEnv HOME={}\n",
            self.port,
            dir.join("host_key").display(),
            self.authorized_keys().display(),
            self.home().display(),
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

    /// Nobody is let in any more; who is in stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.listener.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}
