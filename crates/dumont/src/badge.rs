//! How reliable a machine is, as a person sees it on a terminal.
//!
//! Levels, their five colours and grey, and the three colours of rates are `core`'s
//! (`dumont_core::level`); here they become a terminal's. A percentage always stands beside
//! the number of attempts behind it: 1 of 1 is not 100 % of anything.

use crate::output::Styled;
use dumont_core::level::{Colour, Level, rate_colour, shown_percent};

/// In the 256-colour palette, which every terminal of the last twenty years shows: "light
/// green" and "orange" have no name among the basic sixteen.
pub const fn code(colour: Colour) -> u8 {
    match colour {
        Colour::Green => 34,
        Colour::LightGreen => 120,
        Colour::Yellow => 220,
        Colour::Orange => 208,
        Colour::Red => 196,
        Colour::Grey => 245,
    }
}

/// `● good`
pub fn level(level: Level) -> Styled {
    Styled::new(format!("● {level}"), level.colour())
}

/// The level a word of the API names; a word of a later server is unknown to us.
pub fn level_of(word: &str) -> Level {
    word.parse().unwrap_or(Level::Unknown)
}

/// `85 % of 20`, of counted attempts; a dash before the first.
pub fn rate(successful: i64, failed: i64) -> Styled {
    let counted = successful.saturating_add(failed);
    match shown_percent(successful, counted) {
        None => Styled::plain("-"),
        Some(percent) => Styled::new(
            format!("{percent} % of {counted}"),
            rate_colour(successful, counted),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_is_another_one() {
        let codes: std::collections::BTreeSet<u8> = Colour::ALL.iter().map(|c| code(*c)).collect();
        assert_eq!(codes.len(), 6);
        assert_eq!(level_of("splendid"), Level::Unknown);
    }

    #[test]
    fn a_rate_stands_beside_its_attempts_and_never_rounds_up() {
        assert_eq!(rate(899, 101), Styled::new("89 % of 1000", Colour::Yellow));
        assert_eq!(rate(1, 0), Styled::new("100 % of 1", Colour::Green));
        assert_eq!(rate(29, 71).text, "29 % of 100");
        assert_eq!(rate(2, 1), Styled::new("66 % of 3", Colour::Red));
        assert_eq!(rate(0, 0), Styled::plain("-"));
    }
}
