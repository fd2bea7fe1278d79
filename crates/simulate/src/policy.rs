//! The ways of choosing that are compared.

use dumont_core::blacklist::RuleSet;
use serde::Serialize;

/// What machines are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Price,
    /// The provider's own reliability figure.
    Provider,
    /// The machine's raw record, drawn to 85 % by three attempts; then the provider's figure.
    Record,
    /// The decayed posterior times the boot curve ([`dumont_core::plan::adaptive::Odds::promise`]).
    Score,
    /// The true chance and the true boot curve.
    Truth,
}

/// How many machines are rented at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    Fixed(usize),
    Adaptive,
}

/// How long a race of fixed width waits for one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Patience {
    /// The document's "p90 + 10 s", of the boots that won.
    Winners,
    /// 300 s.
    Fixed,
    /// The boot curve, losers censored.
    Curve,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Policy {
    pub name: &'static str,
    pub order: Order,
    pub width: Width,
    pub patience: Patience,
    /// The blacklist in force, if any.
    pub rules: Option<RuleSet>,
}

const fn policy(
    name: &'static str,
    order: Order,
    width: Width,
    patience: Patience,
    rules: Option<RuleSet>,
) -> Policy {
    Policy {
        name,
        order,
        width,
        patience,
        rules,
    }
}

const REPAIRED: Option<RuleSet> = Some(RuleSet::Default);

pub const CHEAPEST: Policy = policy(
    "cheapest, 3",
    Order::Price,
    Width::Fixed(3),
    Patience::Fixed,
    None,
);
pub const PROVIDER: Policy = policy(
    "provider's figure, 3",
    Order::Provider,
    Width::Fixed(3),
    Patience::Fixed,
    None,
);
/// The document's words, with its learned timeout.
pub const LITERAL: Policy = policy(
    "literal rules, 3",
    Order::Record,
    Width::Fixed(3),
    Patience::Winners,
    Some(RuleSet::Literal),
);
pub const REPAIRED_3: Policy = policy(
    "repaired rules, 3",
    Order::Record,
    Width::Fixed(3),
    Patience::Curve,
    REPAIRED,
);
pub const REPAIRED_5: Policy = policy(
    "repaired rules, 5",
    Order::Record,
    Width::Fixed(5),
    Patience::Curve,
    REPAIRED,
);
pub const REPAIRED_300_3: Policy = policy(
    "repaired rules, 300 s, 3",
    Order::Record,
    Width::Fixed(3),
    Patience::Fixed,
    REPAIRED,
);
pub const REPAIRED_300_5: Policy = policy(
    "repaired rules, 300 s, 5",
    Order::Record,
    Width::Fixed(5),
    Patience::Fixed,
    REPAIRED,
);
pub const SCORE_3: Policy = policy(
    "score, 3",
    Order::Score,
    Width::Fixed(3),
    Patience::Curve,
    REPAIRED,
);
pub const SCORE_5: Policy = policy(
    "score, 5",
    Order::Score,
    Width::Fixed(5),
    Patience::Curve,
    REPAIRED,
);
/// What dumont does: the repaired rules, ordered by score, adaptive width, hedging.
pub const SHIPPED: Policy = policy(
    "score, adaptive (shipped)",
    Order::Score,
    Width::Adaptive,
    Patience::Curve,
    REPAIRED,
);
/// Knows every machine's true chance and boot curve, and races adaptively.
pub const ORACLE: Policy = policy("oracle", Order::Truth, Width::Adaptive, Patience::Curve, None);

pub const ALL: [Policy; 11] = [
    CHEAPEST,
    PROVIDER,
    LITERAL,
    REPAIRED_300_3,
    REPAIRED_300_5,
    REPAIRED_3,
    REPAIRED_5,
    SCORE_3,
    SCORE_5,
    SHIPPED,
    ORACLE,
];

/// Those of the sensitivity table.
pub const SENSITIVE: [Policy; 8] = [
    LITERAL,
    REPAIRED_300_3,
    REPAIRED_3,
    REPAIRED_300_5,
    REPAIRED_5,
    SCORE_5,
    SHIPPED,
    ORACLE,
];
