//! What the engine says while it works.

use crate::error::Error;
use dumont_core::snapshot::Progress;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Listens to a snapshot or a restore. Called from several threads; must not block for long.
pub trait Events: Sync {
    /// At most about five times a second.
    fn progress(&self, progress: Progress);
    /// A line for the log, without a line end.
    fn log(&self, line: &str);
    /// What `ready_when` names is there: this many files. Said once, before the restore's end.
    fn ready(&self, _files: u64) {}
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl Events for NoEvents {
    fn progress(&self, _: Progress) {}
    fn log(&self, _: &str) {}
}

/// The first error wins; everybody else stops at the next [`Abort::check`].
pub(crate) struct Abort<'a> {
    cancelled: &'a AtomicBool,
    hit: AtomicBool,
    first: Mutex<Option<Error>>,
}

impl<'a> Abort<'a> {
    pub fn new(cancelled: &'a AtomicBool) -> Self {
        Self {
            cancelled,
            hit: AtomicBool::new(false),
            first: Mutex::new(None),
        }
    }

    pub fn fail(&self, e: Error) {
        let mut first = lock(&self.first);
        if first.is_none() {
            *first = Some(e);
        }
        self.hit.store(true, Relaxed);
    }

    /// `Err(Cancelled)` once anything failed or the caller wants us to stop; the error to
    /// report is [`Abort::result`]'s.
    pub fn check(&self) -> Result<(), Error> {
        if self.hit.load(Relaxed) || self.cancelled.load(Relaxed) {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// The error behind `e`: a worker that stops because another failed only says `Cancelled`.
    pub fn explain(&self, e: Error) -> Error {
        lock(&self.first).take().unwrap_or(e)
    }

    pub fn result(&self) -> Result<(), Error> {
        match lock(&self.first).take() {
            Some(e) => Err(e),
            None => self.check(),
        }
    }
}

/// A mutex whose poisoning does not matter: a panicking worker ends the whole run anyway.
pub(crate) fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Counts work done; sends progress, and for restores a line each 10 %.
pub(crate) struct Meter<'a> {
    events: &'a dyn Events,
    lines: bool,
    started: Instant,
    done_bytes: AtomicU64,
    done_files: AtomicU64,
    total_bytes: u64,
    total_files: u64,
    said: Mutex<Said>,
}

struct Said {
    at: Instant,
    tenths: u64,
}

const EVERY: Duration = Duration::from_millis(200);

impl<'a> Meter<'a> {
    pub fn new(events: &'a dyn Events, total_bytes: u64, total_files: u64, lines: bool) -> Self {
        let now = Instant::now();
        Self {
            events,
            lines,
            started: now,
            done_bytes: AtomicU64::new(0),
            done_files: AtomicU64::new(0),
            total_bytes,
            total_files,
            said: Mutex::new(Said { at: now, tenths: 0 }),
        }
    }

    pub fn add(&self, bytes: u64, files: u64) {
        let done = self.done_bytes.fetch_add(bytes, Relaxed) + bytes;
        self.done_files.fetch_add(files, Relaxed);
        // Whoever finds somebody else reporting has nothing to add to it.
        let Ok(mut said) = self.said.try_lock() else {
            return;
        };
        let tenths = (done * 10).checked_div(self.total_bytes).unwrap_or(0);
        if self.lines && tenths > said.tenths {
            said.tenths = tenths;
            self.line(done);
        }
        if said.at.elapsed() >= EVERY {
            said.at = Instant::now();
            self.emit();
        }
    }

    pub fn finish(&self) {
        let done = self.done_bytes.load(Relaxed);
        let mut said = lock(&self.said);
        if self.lines && said.tenths < 10 && self.total_bytes > 0 && done == self.total_bytes {
            said.tenths = 10;
            self.line(done);
        }
        self.emit();
    }

    fn emit(&self) {
        self.events.progress(Progress {
            done_bytes: self.done_bytes.load(Relaxed),
            total_bytes: self.total_bytes,
            done_files: self.done_files.load(Relaxed),
            total_files: self.total_files,
        });
    }

    fn line(&self, done: u64) {
        let rate = done as f64 / self.started.elapsed().as_secs_f64().max(1e-6) / 1e6;
        self.events.log(&format!(
            "Downloading: {}% ({}/{}) - {rate:.0}MB/s",
            done * 100 / self.total_bytes.max(1),
            human(done),
            human(self.total_bytes),
        ));
    }
}

/// `450MB`, `1.5GB`: decimal units, as the log lines of the source document have them.
pub(crate) fn human(bytes: u64) -> String {
    let (value, unit) = match bytes {
        0..1_000 => return format!("{bytes}B"),
        1_000..1_000_000 => (bytes as f64 / 1e3, "KB"),
        1_000_000..1_000_000_000 => (bytes as f64 / 1e6, "MB"),
        _ => (bytes as f64 / 1e9, "GB"),
    };
    let text = if value < 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    };
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);
    impl Events for Lines {
        fn progress(&self, _: Progress) {}
        fn log(&self, line: &str) {
            lock(&self.0).push(line.into());
        }
    }

    #[test]
    fn sizes_read_like_the_document() {
        assert_eq!(human(450_000_000), "450MB");
        assert_eq!(human(1_000_000_000), "1GB");
        assert_eq!(human(1_500), "1.5KB");
    }

    #[test]
    fn one_line_each_tenth() {
        let lines = Lines::default();
        let meter = Meter::new(&lines, 1000, 1, true);
        (0..100).for_each(|_| meter.add(10, 0));
        meter.finish();
        let said = lock(&lines.0);
        assert_eq!(said.len(), 10, "{said:?}");
        assert!(
            said[0].starts_with("Downloading: 10% (100B/1KB) - "),
            "{}",
            said[0]
        );
        assert!(said[9].starts_with("Downloading: 100% "));
    }
}
