//! `dumont doctor`: whether everything a server needs is there, and what to do where it is not.
//!
//! It reads the very settings that `serve` reads and looks for itself, so it works with a server,
//! without one, and where one does not start. It changes nothing that a running server uses: the
//! database is opened for reading and not migrated, the store gets one object under a name of
//! its own, and nothing is made that the first start would make.

mod data_dir;
mod database;
mod provider;
mod store;

pub use crate::check::{Check, Level};

use crate::settings::ServerConfig;

/// Looks at everything. Nothing of it costs money.
pub async fn examine(config: &ServerConfig) -> Vec<Check> {
    let mut checks = data_dir::examine(&config.data_dir);
    checks.extend(database::examine(config).await);
    checks.extend(store::examine(config).await);
    checks.extend(provider::examine(config).await);
    checks
}

/// How a clock stands to ours. Signed URLs hold for minutes, leases for seconds.
fn clock(name: &'static str, whose: &str, off_ms: i64) -> Check {
    let by = off_ms.abs();
    let detail = format!(
        "{whose} is {}.{:03} s {} this machine's",
        by / 1000,
        by % 1000,
        if off_ms < 0 { "behind" } else { "ahead of" }
    );
    let hint = "set the clocks by NTP (timedatectl set-ntp true)";
    match by {
        ..5_000 => Check::ok(name, detail),
        5_000..60_000 => Check::warning(name, detail, hint),
        _ => Check::failed(name, detail, hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_be_off_by_seconds_not_by_minutes() {
        for (off, level) in [
            (0, Level::Ok),
            (-4_999, Level::Ok),
            (5_000, Level::Warning),
            (-59_999, Level::Warning),
            (60_000, Level::Failed),
            (-3_600_000, Level::Failed),
        ] {
            assert_eq!(clock("clock", "it", off).level, level, "{off}");
        }
        assert_eq!(
            clock("c", "the database", -1_250).detail,
            "the database is 1.250 s behind this machine's"
        );
    }
}
