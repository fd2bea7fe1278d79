//! The workload's log: two files of at most 1 MiB, whatever the workload prints.
//!
//! The supervisor reads the workload's output through a pipe instead of giving it the file,
//! because only who writes can stop at a size; and it goes on reading when the disk is full,
//! because a workload that blocks on its own log is down.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub const LIMIT: u64 = 1 << 20;

#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl LogFile {
    pub fn open(path: &Path) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            size: 0,
        };
        let _ = log.reopen();
        log
    }

    /// Never fails: what cannot be written is lost.
    pub fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(64 << 10) {
            if self.file.is_none() && self.reopen().is_err() {
                return;
            }
            if self.size + part.len() as u64 > LIMIT && self.rotate().is_err() {
                return;
            }
            let written = self.file.as_mut().is_some_and(|f| f.write_all(part).is_ok());
            if written {
                self.size += part.len() as u64;
            } else {
                self.file = None;
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        std::fs::rename(&self.path, older)?;
        self.reopen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_and_never_more_than_their_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path);
        for i in 0..50_000u32 {
            log.write(format!("line {i:060}\n").as_bytes());
        }
        let sizes: Vec<_> = dir
            .path()
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|s| *s <= LIMIT), "{sizes:?}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("49999\n"));
    }
}
