//! A pseudo-terminal as asynchronous streams.
//!
//! Tokio has no type for terminals, and registering a bare descriptor with it
//! is unsafe. Its pipe ends take any descriptor that can be polled and do for it
//! what is needed here: wait, read, write.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::net::unix::pipe;

use crate::machine::Machine;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: u32,
    pub rows: u32,
}

/// Our end, held to resize it. The kernel hangs up on the session when this and
/// both streams are gone.
pub struct Master(OwnedFd);

/// A terminal of the machine: our end, and what the program gets.
pub struct Terminal {
    pub master: Master,
    /// What the program writes; fails with EIO once nobody holds its end.
    pub output: pipe::Receiver,
    pub input: pipe::Sender,
    pub program: [Stdio; 3],
}

pub fn open(machine: &Machine, size: Size) -> io::Result<Terminal> {
    let master = machine.open_pty()?;
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    let terminal = Terminal {
        output: pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?,
        input: pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?,
        master: Master(master),
        program: [
            theirs.try_clone()?.into(),
            theirs.try_clone()?.into(),
            theirs.into(),
        ],
    };
    terminal.master.resize(size);
    Ok(terminal)
}

impl Master {
    pub fn resize(&self, size: Size) {
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let winsize = Winsize {
            ws_row: cells(size.rows),
            ws_col: cells(size.columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let _ = rustix::termios::tcsetwinsize(&self.0, winsize);
    }
}
