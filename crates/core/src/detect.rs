//! When is a machine lost? Pure judgement over what was observed.
//!
//! One source is a blip: our own network drops sessions too. A reset session *and* a refused
//! redial are two acts of the same host's kernel, so together they decide at once. Silence
//! proves nothing by itself and needs [`SILENCE`] plus a second source that is not our own
//! network: the host's refusal of a fresh connection, the provider's word that the machine is
//! gone, or, where a fresh connection gets no answer at all, any word of the provider, which
//! shows that we can be heard. The provider's word alone never decides while the session
//! still talks. Where the provider told us by itself, and says so again when it is asked, missed
//! heartbeats are enough ([`HINTED`]), or a session that was reset.

use crate::time::Timestamp;
use std::time::Duration;

/// How long a session may say nothing before silence counts as a hint.
pub const SILENCE: Duration = Duration::from_secs(6);

/// The same where the provider told us by itself: two missed heartbeats and some.
pub const HINTED: Duration = Duration::from_millis(2_500);

/// How a fresh connection attempt to the machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redial {
    /// The host's kernel said no: nothing listens there any more.
    Refused,
    /// No answer in time, or no route: the machine, or we ourselves.
    Unreachable,
    /// Something answers SSH there, but our key or our agent does not get in any more.
    Shut,
    /// SSH answered and let us in.
    Connected,
}

/// What the provider says of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderWord {
    /// It answered, and does not say that the machine is gone.
    Running,
    /// Stopped or exited.
    Stopped,
    /// Stopped by a higher bid.
    Outbid,
    Offline,
    /// The provider itself says that there is no such instance.
    Gone,
    /// The call failed: no evidence either way, perhaps our own network.
    NoWord,
}

impl ProviderWord {
    /// Whether by this word the machine does not serve.
    pub fn says_lost(self) -> bool {
        matches!(self, Self::Gone | Self::Stopped | Self::Offline)
    }
}

/// Everything observed of one machine since it was last heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// Last frame from the agent.
    pub last_heard: Timestamp,
    /// When the session's connection ended, if it did.
    pub session_reset: Option<Timestamp>,
    /// The newest fresh connection made after `last_heard`.
    pub redial: Option<Redial>,
    /// The newest word of the provider after `last_heard`.
    pub provider: Option<ProviderWord>,
    /// It was asked because it had told us by itself that something is wrong there.
    pub hinted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It serves.
    Alive,
    /// Look again: ask the sources that are still open.
    Suspect,
    /// Two sources agree.
    Lost(Cause),
}

/// What decided, as it is written into the event row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    SessionResetAndRefused,
    SilentAndUnreachable,
    ProviderSaysStopped,
    ProviderSaysOutbid,
    ProviderSaysOffline,
    ProviderSaysGone,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SessionResetAndRefused => "session_reset_and_redial_refused",
            Self::SilentAndUnreachable => "silent_and_unreachable",
            Self::ProviderSaysStopped => "provider_says_stopped",
            Self::ProviderSaysOutbid => "provider_says_outbid",
            Self::ProviderSaysOffline => "provider_says_offline",
            Self::ProviderSaysGone => "provider_says_gone",
        }
    }
}

/// Judges the evidence at `now`.
pub fn judge(evidence: &Evidence, now: Timestamp) -> Judgement {
    let reset = evidence.session_reset.is_some();
    let said = evidence.provider.is_some_and(ProviderWord::says_lost);
    let quiet = |so_long: Duration| now >= evidence.last_heard.plus(so_long);
    let silent = quiet(SILENCE) || (evidence.hinted && said && (reset || quiet(HINTED)));
    if !silent && !reset {
        return Judgement::Alive;
    }
    if evidence.redial == Some(Redial::Connected) {
        // The host is there; the session alone failed and is made anew.
        return Judgement::Suspect;
    }
    if reset && evidence.redial == Some(Redial::Refused) {
        return Judgement::Lost(Cause::SessionResetAndRefused);
    }
    if !silent {
        return Judgement::Suspect;
    }
    match (evidence.provider, evidence.redial) {
        (Some(ProviderWord::Gone), _) => Judgement::Lost(Cause::ProviderSaysGone),
        (Some(ProviderWord::Stopped), _) => Judgement::Lost(Cause::ProviderSaysStopped),
        (Some(ProviderWord::Outbid), _) => Judgement::Lost(Cause::ProviderSaysOutbid),
        (Some(ProviderWord::Offline), _) => Judgement::Lost(Cause::ProviderSaysOffline),
        (_, Some(Redial::Refused)) | (Some(ProviderWord::Running), Some(Redial::Unreachable)) => {
            Judgement::Lost(Cause::SilentAndUnreachable)
        }
        _ => Judgement::Suspect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: Timestamp = Timestamp(1_000_000_000);

    fn heard() -> Evidence {
        Evidence {
            last_heard: T0,
            session_reset: None,
            redial: None,
            provider: None,
            hinted: false,
        }
    }

    /// It told us, we asked, and it says so: a session that was reset is enough, or missed heartbeats.
    /// While the session talks, or a fresh one gets through, nothing is.
    #[test]
    fn a_hint_that_the_provider_confirms_saves_the_long_silence() {
        let told = Evidence {
            provider: Some(ProviderWord::Stopped),
            hinted: true,
            ..heard()
        };
        let early = T0.plus(Duration::from_millis(2_499));
        assert_eq!(judge(&told, early), Judgement::Alive);
        let lost = Judgement::Lost(Cause::ProviderSaysStopped);
        assert_eq!(judge(&told, T0.plus(HINTED)), lost);
        let reset = Evidence {
            session_reset: Some(T0),
            ..told
        };
        assert_eq!(judge(&reset, T0), lost);
        let through = Evidence {
            redial: Some(Redial::Connected),
            ..told
        };
        assert_eq!(judge(&through, T0.plus(SILENCE)), Judgement::Suspect);
        for word in [None, Some(ProviderWord::Running), Some(ProviderWord::NoWord)] {
            let unconfirmed = Evidence {
                provider: word,
                ..told
            };
            assert_eq!(judge(&unconfirmed, T0.plus(HINTED)), Judgement::Alive, "{word:?}");
        }
    }

    #[test]
    fn a_reset_and_a_refused_redial_decide_at_once() {
        let e = Evidence {
            session_reset: Some(T0),
            redial: Some(Redial::Refused),
            ..heard()
        };
        assert_eq!(judge(&e, T0), Judgement::Lost(Cause::SessionResetAndRefused));
    }

    #[test]
    fn a_reset_alone_is_only_a_suspicion() {
        let e = Evidence {
            session_reset: Some(T0),
            ..heard()
        };
        assert_eq!(judge(&e, T0), Judgement::Suspect);
        let later = T0.plus(Duration::from_secs(60));
        assert_eq!(judge(&e, later), Judgement::Suspect, "no second source was asked");
    }

    #[test]
    fn silence_needs_six_seconds_and_a_second_source() {
        let e = Evidence {
            provider: Some(ProviderWord::Offline),
            ..heard()
        };
        assert_eq!(judge(&e, T0.plus(Duration::from_millis(5_999))), Judgement::Alive);
        assert_eq!(
            judge(&e, T0.plus(SILENCE)),
            Judgement::Lost(Cause::ProviderSaysOffline)
        );
        let no_word = Evidence {
            provider: Some(ProviderWord::NoWord),
            ..heard()
        };
        assert_eq!(judge(&no_word, T0.plus(SILENCE)), Judgement::Suspect);
    }

    #[test]
    fn our_own_network_being_down_loses_nobody() {
        let e = Evidence {
            session_reset: Some(T0),
            redial: Some(Redial::Unreachable),
            provider: Some(ProviderWord::NoWord),
            ..heard()
        };
        assert_eq!(judge(&e, T0.plus(Duration::from_secs(3_600))), Judgement::Suspect);
        let heard_by_the_provider = Evidence {
            provider: Some(ProviderWord::Running),
            ..e
        };
        assert_eq!(
            judge(&heard_by_the_provider, T0.plus(SILENCE)),
            Judgement::Lost(Cause::SilentAndUnreachable)
        );
    }

    #[test]
    fn a_machine_that_shuts_us_out_is_lost_when_the_provider_says_so() {
        let e = Evidence {
            redial: Some(Redial::Shut),
            provider: Some(ProviderWord::Running),
            ..heard()
        };
        assert_eq!(judge(&e, T0.plus(SILENCE)), Judgement::Suspect);
        let gone = Evidence {
            provider: Some(ProviderWord::Gone),
            ..e
        };
        assert_eq!(
            judge(&gone, T0.plus(SILENCE)),
            Judgement::Lost(Cause::ProviderSaysGone)
        );
    }

    fn redial() -> impl Strategy<Value = Option<Redial>> {
        prop_oneof![
            Just(None),
            Just(Some(Redial::Refused)),
            Just(Some(Redial::Unreachable)),
            Just(Some(Redial::Shut)),
            Just(Some(Redial::Connected))
        ]
    }

    fn word() -> impl Strategy<Value = Option<ProviderWord>> {
        use ProviderWord::*;
        prop_oneof![
            Just(None),
            Just(Some(Running)),
            Just(Some(Stopped)),
            Just(Some(Offline)),
            Just(Some(Gone)),
            Just(Some(NoWord))
        ]
    }

    proptest! {
        /// Never lost on one source, never while a fresh connection works.
        #[test]
        fn one_source_never_decides(
            reset in any::<bool>(), hinted in any::<bool>(), redial in redial(), word in word(), ms in 0i64..60_000,
        ) {
            let e = Evidence {
                last_heard: T0,
                session_reset: reset.then_some(T0),
                redial,
                provider: word,
                hinted,
            };
            let verdict = judge(&e, Timestamp(T0.0 + ms * 1000));
            if let Judgement::Lost(_) = verdict {
                let provider_bad = matches!(word, Some(ProviderWord::Stopped | ProviderWord::Offline | ProviderWord::Gone));
                let redial_bad = matches!(redial, Some(Redial::Refused | Redial::Unreachable));
                prop_assert!(redial != Some(Redial::Connected));
                prop_assert!(provider_bad || redial_bad);
                let told = hinted && provider_bad && (reset || ms >= 2_500);
                prop_assert!(ms >= 6_000 || told || (reset && redial == Some(Redial::Refused)));
            }
        }
    }
}
