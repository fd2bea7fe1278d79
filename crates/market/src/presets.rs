//! What a market is like: every parameter, with where it comes from.
//!
//! What decides a deploy (how often it works, how long it takes, what goes wrong together) is
//! the model that the policies of `docs/reliability.md` are measured on, so its numbers are
//! taken from there (`dumont_simulate::Parameters`, which names the source of each). What only
//! a client of the protocol meets (keys that lag, bids, noise) is here.

use std::str::FromStr;

use dumont_simulate::Parameters;

use crate::error::MarketError;
use crate::limits::Limits;

/// One of the three markets that come with names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// Everything works, nothing changes by itself: for tests of what is no market's fault.
    #[default]
    Calm,
    /// As Vast.ai is known to be.
    Vast,
    /// Everything goes wrong much more often.
    Hell,
}

impl FromStr for Preset {
    type Err = MarketError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "calm" => Ok(Self::Calm),
            "vast" => Ok(Self::Vast),
            "hell" => Ok(Self::Hell),
            other => Err(MarketError::Invalid(format!(
                "a preset is calm, vast or hell, not {other:?}"
            ))),
        }
    }
}

/// What happens on a market where something happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Weather {
    /// Success, boots, images, presence, incidents and their sources.
    pub deploys: Parameters,
    /// Reported: sshd takes 0 to 90 s more after `running`.
    pub sshd_s: (f64, f64),
    /// Reported: `Permission denied (publickey)` for up to about 180 s while a key spreads. That
    /// most logins do not meet it, and the share that does, are assumed.
    pub key_lag_s: (f64, f64),
    pub key_lag_share: f64,
    /// Assumed: a running machine is lost for good so often a day. (Of 13 Vast runs that came
    /// up, 8 later died, monygroupcorp/noema benchmarks, but after an unknown time.)
    pub deaths_per_day: f64,
    /// Assumed: prices move with this sigma, anew after so many hours.
    pub price_sigma: f64,
    pub price_hours: f64,
    /// Assumed: in so large a share of the periods somebody bids on a machine against whoever
    /// is there, up to so many times the lowest bid.
    pub rival_share: f64,
    pub rival_most: f64,
    pub rival_hours: f64,
    /// Assumed: in so large a share of the periods somebody wants a machine on demand that is let
    /// to bidders, and gets it.
    pub taker_share: f64,
    pub taker_hours: f64,
    /// Vast.ai docs: logins get a banner and tmux unless `~/.no_auto_tmux` is there.
    pub noise: bool,
    /// Vast.ai docs: the proxy works on all machines; its ports are reused.
    pub proxy: bool,
    /// What replies to a create are lost after it was carried out. Assumed.
    pub lost_replies: f64,
}

impl Preset {
    /// `None` where nothing happens by itself.
    pub fn weather(self) -> Option<Weather> {
        match self {
            Self::Calm => None,
            Self::Vast => Some(Weather {
                deploys: Parameters::default(),
                sshd_s: (0.0, 90.0),
                key_lag_s: (1.0, 180.0),
                key_lag_share: 0.1,
                deaths_per_day: 0.05,
                price_sigma: 0.05,
                price_hours: 6.0,
                rival_share: 0.05,
                rival_most: 2.0,
                rival_hours: 0.5,
                taker_share: 0.01,
                taker_hours: 4.0,
                noise: true,
                proxy: true,
                lost_replies: 0.002,
            }),
            Self::Hell => Some(Weather {
                deploys: Parameters {
                    lemon_share: 0.5,
                    good_success: 0.8,
                    lemon_success: 0.1,
                    incidents_per_day: 6.0,
                    outages_per_day: 40.0,
                    outage_hours: 1.0,
                    broken_images_per_day: 2.0,
                    offer_gone: 0.2,
                    ..Parameters::default()
                },
                sshd_s: (0.0, 90.0),
                key_lag_s: (1.0, 180.0),
                key_lag_share: 0.5,
                deaths_per_day: 24.0,
                price_sigma: 0.2,
                price_hours: 1.0,
                rival_share: 0.4,
                rival_most: 4.0,
                rival_hours: 0.25,
                taker_share: 0.1,
                taker_hours: 0.5,
                noise: true,
                proxy: true,
                lost_replies: 0.1,
            }),
        }
    }

    /// The limits that go with it, where nobody says otherwise.
    pub fn limits(self) -> Limits {
        match self {
            Self::Calm => Limits::OFF,
            Self::Vast | Self::Hell => Limits::DOCUMENTED,
        }
    }
}
