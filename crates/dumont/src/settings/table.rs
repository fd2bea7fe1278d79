//! The list of settings: a line each.

use super::{Value, wrong};
use anyhow::Result;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub name: &'static str,
    pub default: Option<&'static str>,
    pub shown: Shown,
    check: Check,
    pub about: &'static str,
}

/// What `dumont config show` may print of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Plainly,
    /// A URL without the secrets in it.
    AsUrl,
    Never,
}

#[derive(Debug, Clone, Copy)]
enum Check {
    Anything,
    Whole(u64, u64),
    Share,
    Dollars,
    Address,
    OneOf(&'static [&'static str]),
    /// Words of a-z, 0-9 and _ with commas between them.
    Words,
}

const fn text(name: &'static str, about: &'static str) -> Setting {
    Setting {
        name,
        default: None,
        shown: Shown::Plainly,
        check: Check::Anything,
        about,
    }
}

const fn secret(name: &'static str, about: &'static str) -> Setting {
    Setting {
        shown: Shown::Never,
        ..text(name, about)
    }
}

const fn url(name: &'static str, about: &'static str) -> Setting {
    Setting {
        shown: Shown::AsUrl,
        ..text(name, about)
    }
}

/// A whole number within bounds.
const fn whole(name: &'static str, within: RangeInclusive<u64>, about: &'static str) -> Setting {
    Setting {
        check: Check::Whole(*within.start(), *within.end()),
        ..text(name, about)
    }
}

/// A number from 0 to 1.
const fn share(name: &'static str, about: &'static str) -> Setting {
    Setting {
        check: Check::Share,
        ..text(name, about)
    }
}

/// A number of 0 or more.
const fn dollars(name: &'static str, about: &'static str) -> Setting {
    Setting {
        check: Check::Dollars,
        ..text(name, about)
    }
}

const fn address(name: &'static str, about: &'static str) -> Setting {
    Setting {
        check: Check::Address,
        ..text(name, about)
    }
}

const fn one_of(name: &'static str, words: &'static [&'static str], about: &'static str) -> Setting {
    Setting {
        check: Check::OneOf(words),
        ..text(name, about)
    }
}

const fn words(name: &'static str, about: &'static str) -> Setting {
    Setting {
        check: Check::Words,
        ..text(name, about)
    }
}

impl Setting {
    const fn or(self, default: &'static str) -> Self {
        Self {
            default: Some(default),
            ..self
        }
    }
}

pub const SETTINGS: &[Setting] = &[
    text(
        "DUMONT_DATA_DIR",
        "where data, keys and the server's address are kept",
    ),
    address("DUMONT_LISTEN", "where the server listens").or("127.0.0.1:7070"),
    text(
        "DUMONT_TLS_CERT",
        "serve HTTPS with this certificate (PEM, the chain after it)",
    ),
    text("DUMONT_TLS_KEY", "the certificate's private key (PEM)"),
    url(
        "DUMONT_PUBLIC_URL",
        "how others call this server, where it is not where it listens",
    ),
    url("DUMONT_URL", "the server that the commands talk to"),
    secret("DUMONT_TOKEN", "the API token of the commands"),
    text(
        "DUMONT_CA_FILE",
        "trust only this authority (PEM) for a server with https",
    ),
    text(
        "DUMONT_LOG",
        "what the server logs, e.g. info,dumont_server=debug",
    )
    .or("info"),
    url(
        "DATABASE_URL",
        "PostgreSQL: postgres://USER:PASSWORD@HOST:5432/NAME; wins over DB_*",
    ),
    text("DB_USER", "PostgreSQL's user"),
    secret("DB_PASSWORD", "PostgreSQL's password"),
    text(
        "DB_HOST",
        "PostgreSQL's host, or the folder of its socket [localhost]",
    ),
    whole("DB_PORT", 1..=65_535, "PostgreSQL's port [5432]"),
    text("DB_NAME", "the database's name"),
    secret(
        "VAST_API_KEY",
        "the marketplace's key; without it only machines of your own are used",
    ),
    url("VAST_URL", "the marketplace's address").or("https://console.vast.ai"),
    secret(
        "VAST_WEBHOOK_SECRET",
        "what Vast.ai signs its notifications with; without it none is taken",
    ),
    text(
        "VAST_LIMITS",
        "what the account may ask: documented, off, a factor of the documented, or e.g. create=6,search=20/min",
    )
    .or("documented"),
    text(
        "SSH_INVENTORY",
        "a file of machines of your own (TOML, [[machines]]), read again at each use",
    ),
    text("B2_KEY_ID", "Backblaze B2: the id of the application key"),
    secret("B2_APPLICATION_KEY", "Backblaze B2: the application key"),
    url("B2_ENDPOINT", "Backblaze B2: where the bucket is"),
    text("B2_BUCKET", "keep snapshots in this B2 bucket"),
    text(
        "B2_REGION",
        "Backblaze B2: the region, where the endpoint does not say it",
    ),
    text("S3_BUCKET", "keep snapshots in this S3 bucket"),
    text("AWS_ACCESS_KEY_ID", "S3: the id of the access key"),
    secret("AWS_SECRET_ACCESS_KEY", "S3: the access key"),
    secret("AWS_SESSION_TOKEN", "S3: the token of a temporary key"),
    text("AWS_REGION", "S3: the region"),
    text(
        "AWS_DEFAULT_REGION",
        "S3: the region, where AWS_REGION is not set",
    ),
    url("AWS_ENDPOINT_URL_S3", "S3: another service than AWS"),
    url("AWS_ENDPOINT_URL", "S3: the same, for all AWS services"),
    text("S3_ADDRESSING", "S3: path or virtual"),
    text(
        "S3_CA_FILE",
        "S3: the authority (PEM) that signed the service's certificate",
    ),
    whole(
        "PERIODIC_SNAPSHOT_INTERVAL_MINUTES",
        0..=525_600,
        "minutes between two snapshots of a running workspace; 0: none by themselves",
    )
    .or("60"),
    whole(
        "MIN_ATTEMPTS_FOR_BLACKLIST",
        1..=1_000,
        "attempts before a machine's success rate counts",
    )
    .or("3"),
    share("MIN_SUCCESS_RATE", "a machine below this success rate is blocked").or("0.3"),
    whole(
        "AUTOMATIC_BLACKLIST_DAYS",
        1..=3_650,
        "how long such a machine is blocked",
    )
    .or("7"),
    whole(
        "TEMPORARY_BLACKLIST_HOURS",
        1..=87_600,
        "how long one is blocked that failed just now",
    )
    .or("24"),
    one_of(
        "BLACKLIST_RULES",
        &["default", "literal"],
        "default (repaired), or literal: the document's own words",
    )
    .or("default"),
    whole(
        "CONSECUTIVE_FAILURES_FOR_BLACKLIST",
        1..=1_000,
        "failures in a row that block a machine",
    )
    .or("3"),
    words(
        "CRITICAL_FAILURE_REASONS",
        "reasons that block at the first failure, with commas; none for none",
    )
    .or("hardware_error"),
    whole(
        "INTERRUPTS_FOR_BLACKLIST",
        1..=1_000,
        "times a machine is lost after it was ready before it is blocked",
    )
    .or("3"),
    whole("INTERRUPT_WINDOW_DAYS", 1..=365, "days in which they are counted").or("7"),
    whole(
        "RELEASE_BLACKLIST_BELOW",
        0..=64,
        "machines a search keeps by passing over blocks; 0: never [as many as race]",
    ),
    whole(
        "ATTEMPT_RETENTION_DAYS",
        1..=3_650,
        "attempts older than this are only counted",
    )
    .or("180"),
    dollars(
        "SPENDING_CAP_PER_DAY",
        "nothing is rented that would cost more in a UTC day; 0: no cap",
    )
    .or("100"),
    dollars(
        "SPENDING_CAP_PER_MONTH",
        "nothing is rented that would cost more in a UTC month; 0: no cap",
    )
    .or("1000"),
    whole(
        "ABANDON_AFTER_MINUTES",
        0..=525_600,
        "a machine stops itself when no controller was there for so long; 0: never",
    )
    .or("1440"),
    whole(
        "REAPER_CEILING",
        0..=1_000,
        "instances nobody knows that are destroyed at once; more raise an alarm",
    )
    .or("20"),
    whole(
        "REAPER_GRACE_SECONDS",
        60..=86_400,
        "how old such an instance must be",
    )
    .or("120"),
];

impl Setting {
    /// The value as it may be printed.
    pub fn shown(&self, text: &str) -> String {
        match self.shown {
            Shown::Plainly => text.to_owned(),
            Shown::AsUrl => super::redacted(text),
            Shown::Never => super::redact::HIDDEN.to_owned(),
        }
    }

    pub(super) fn check(&self, value: &Value) -> Result<()> {
        let (text, name) = (value.text.as_str(), self.name);
        match self.check {
            Check::Anything => Ok(()),
            Check::Whole(least, most) => match text.parse::<u64>() {
                Ok(n) if (least..=most).contains(&n) => Ok(()),
                _ => Err(wrong(
                    name,
                    value,
                    &format!("must be a whole number from {least} to {most}"),
                )),
            },
            Check::Share => match text.parse::<f64>() {
                Ok(n) if (0.0..=1.0).contains(&n) => Ok(()),
                _ => Err(wrong(name, value, "must be a number from 0 to 1, e.g. 0.3")),
            },
            Check::Dollars => match text.parse::<f64>() {
                Ok(n) if n.is_finite() && n >= 0.0 => Ok(()),
                _ => Err(wrong(name, value, "must be dollars, 0 or more, e.g. 25.50")),
            },
            Check::OneOf(words) if words.contains(&text) => Ok(()),
            Check::OneOf(words) => Err(wrong(
                name,
                value,
                &format!("must be one of: {}", words.join(", ")),
            )),
            Check::Words => {
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
                let fine = |w: &str| (1..=50).contains(&w.len()) && w.bytes().all(plain);
                if text.split(',').map(str::trim).all(fine) {
                    return Ok(());
                }
                Err(wrong(
                    name,
                    value,
                    "must be words with commas, e.g. hardware_error,gpu_not_ready",
                ))
            }
            Check::Address => match text.parse::<SocketAddr>() {
                Ok(_) => Ok(()),
                Err(_) => Err(wrong(
                    name,
                    value,
                    "must be an address and a port, e.g. 127.0.0.1:7070",
                )),
            },
        }
    }
}
