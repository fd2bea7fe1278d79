//! A program on a real pseudo-terminal, and the screen as a person sees it.
//!
//! `script` (util-linux) makes the terminal: what it reads is what is typed, what it writes is
//! what the screen shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a terminal that cannot be had fails the test"
)]

use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ROWS: NonZero<u16> = NonZero::new(50).unwrap();
const COLUMNS: NonZero<u16> = NonZero::new(140).unwrap();
/// For a loaded machine: nothing here waits when it has what it waits for.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Runs a shell line on a new terminal; `shape` sets directory and environment.
    pub fn of(line: &str, shape: impl FnOnce(&mut Command)) -> Self {
        let sized = format!("stty rows {ROWS} cols {COLUMNS}; exec {line}");
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--flush", "--command", &sized, "/dev/null"]);
        shape(&mut command);
        let mut child = command
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script: `scripts/setup --tests` installs it");
        let keyboard = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let seen = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                seen.lock().unwrap().process(&buffer[..n]);
            }
        });
        Self {
            child,
            keyboard,
            screen,
        }
    }

    pub fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen shows it.
    pub fn sees(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(wanted) {
            assert!(
                Instant::now() < deadline,
                "no {wanted:?} on the screen:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    pub fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
