//! What is not known of the real market, each as a switch.
//!
//! Nobody has documented these, or two sources contradict each other. A client should survive
//! either answer, so each can be had: `name=value`. The first value of each is the default,
//! the likelier answer by the evidence beside it. Facts are from Vast.ai's documentation, the
//! source of its official client (`vastai` 1.9.1) and public reports, November 2026.

use serde::Serialize;

use crate::error::MarketError;

/// One switch, as `--help` and the documentation list it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Switch {
    pub name: &'static str,
    /// The default first.
    pub values: &'static [&'static str],
    pub evidence: &'static str,
}

macro_rules! switches {
    ($($field:ident: $kind:ident { $first:ident = $default:literal $(, $variant:ident = $word:literal)+ } $evidence:literal;)+) => {
        $(
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
            pub enum $kind { #[default] $first, $($variant),+ }
        )+

        /// The position of every switch.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Switches { $(pub $field: $kind),+ }

        /// All of them.
        pub const SWITCHES: &[Switch] = &[$(Switch {
            name: stringify!($field),
            values: &[$default, $($word),+],
            evidence: $evidence,
        }),+];

        impl Switches {
            /// Sets one by its words; `false` where there is no such switch or value.
            fn put(&mut self, name: &str, value: &str) -> bool {
                match (name, value) {
                    $(
                        (stringify!($field), $default) => self.$field = $kind::$first,
                        $((stringify!($field), $word) => self.$field = $kind::$variant,)+
                    )+
                    _ => return false,
                }
                true
            }
        }
    };
}

switches! {
    auth_failure: AuthFailure { NotFound = "404", Unauthorized = "401", Documented = "documented" }
        "A wrong key: live reports say 404 with auth_error; the OpenAPI files say 401 for instances and 404 for search (`documented`).";
    insufficient_credit: InsufficientCredit { Code = "code", Message = "message", Payment = "402" }
        "Seen live as 400 with the word insufficient_credit; whether as `error` or only in `msg`, and with which text, is not known.";
    rate_limit_body: RateLimitBody { Mixed = "mixed", Plain = "plain", Threshold = "threshold", Detail = "detail", Json = "json" }
        "The documentation shows four bodies of a 429 without saying which endpoint uses which; `mixed` takes turns.";
    rate_limit_headers: RateLimitHeaders { None = "none", RetryAfter = "retry-after" }
        "The documentation says that there is no Retry-After; the official client honours one.";
    direct_word: DirectWord { Both = "both", Documented = "documented" }
        "Clients send `ssh_direc`, the OpenAPI enum says `ssh_direct`; one user claims that the former silently falls back to the proxy (`documented`).";
    onstart_limit: OnstartLimit { Long = "16384", Short = "4096" }
        "One page of the documentation says 16 KB, another 4096 characters for args and onstart together.";
    queued_start: QueuedStart { Persists = "persists", Forgotten = "forgotten" }
        "A start on a taken GPU answers `state change queued`; reports differ on whether it ever happens.";
    account_keys: AccountKeys { NewOnly = "new", All = "all" }
        "Whether a key added to the account reaches running instances: the guide and the official client say no, the OpenAPI text says yes.";
    host_loss: HostLoss { Offline = "offline", Unknown = "unknown" }
        "What `actual_status` says when a host is lost: documented are both, `unknown` for no heartbeat, `offline` for disconnected.";
    no_such_instance: NoSuchInstance { Instance = "no_such_instance", Found = "not_found" }
        "The error of a 404 on an instance: `no_such_instance` in the source of a client that runs on the real service, `not_found` in the documentation.";
    stale_offer: StaleOffer { Gone = "410", NotFound = "404", BadRequest = "400" }
        "Renting an offer that is taken: 410 and 404 are documented, 400 was reported.";
    low_bid: LowBid { Stopped = "stopped", Refused = "refused" }
        "A bid that is too low: `success:false` with a stopped contract (a client's source); with cancel_unavail always refused.";
    content_type: ContentType { Bare = "bare", Charset = "charset" }
        "The official client takes offers only as exactly `application/json`; whether other answers name a charset is not known.";
    bare_path: BarePath { Accept = "accept", Redirect = "redirect" }
        "The real API answers a path without its slash with 301 and a JSON body (reported); the official client sends both forms.";
    padding: Padding { Newline = "newline", None = "none" }
        "`public_ipaddr` ends with a newline in the OpenAPI example, and clients strip it.";
    single_read: SingleRead { Whole = "whole", NoVolumes = "no-volumes" }
        "The read of one instance may lack volume_info (reported).";
    stopped_status: StoppedStatus { Exited = "exited", Stopped = "stopped" }
        "What `actual_status` says of one that was stopped: both words are documented.";
    instance_key: InstanceKey { Acts = "acts", Refused = "refused" }
        "The key in a container's CONTAINER_API_KEY: documented to show, start, stop and destroy its own instance and nothing else, and used so by Vast.ai's own images; reported refused (\"Unable to authorize instance API key\") from elsewhere.";
    env_string: EnvString { Ignored = "ignored", Refused = "refused" }
        "`env` as a string of flags: the OpenAPI type, but the guide says that it is wrong and not applied.";
}

impl Switches {
    /// Sets one: `name=value`.
    pub fn set(&mut self, text: &str) -> Result<(), MarketError> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if self.put(name, value) {
            return Ok(());
        }
        let known = SWITCHES.iter().find(|s| s.name == name);
        let why = match known {
            Some(switch) => format!("{name} is one of {}, not {value:?}", switch.values.join(", ")),
            None => {
                let names: Vec<&str> = SWITCHES.iter().map(|s| s.name).collect();
                format!("there is no switch {name:?}; there are {}", names.join(", "))
            }
        };
        Err(MarketError::Invalid(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_can_be_set_and_nothing_else() {
        for switch in SWITCHES {
            for (nth, value) in switch.values.iter().enumerate() {
                let mut switches = Switches::default();
                switches
                    .set(&format!("{}={value}", switch.name))
                    .expect("a switch");
                assert_eq!(
                    switches == Switches::default(),
                    nth == 0,
                    "{}={value}",
                    switch.name
                );
            }
            assert!(
                Switches::default()
                    .set(&format!("{}=nonsense", switch.name))
                    .is_err()
            );
        }
        let error = Switches::default().set("nonsense").expect_err("no such switch");
        assert!(error.to_string().contains("auth_failure"), "{error}");
    }

    #[test]
    fn the_guide_lists_them_all() {
        let guide = include_str!("../../../docs/market.md");
        for switch in SWITCHES {
            let row = format!("| `{}` | {} |", switch.name, switch.values.join(", "));
            assert!(guide.contains(&row), "docs/market.md has no row {row}");
        }
    }
}
