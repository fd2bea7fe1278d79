//! What is on offer, worked out once and kept until it changes.
//!
//! Every search wants it and few things change it: a rental, and the periods of `tides`, whose
//! ends are known. So prices and presence are kept until the first period ends, the list of rows
//! until then or until a GPU changes hands, and a search looks at it without the market's lock.

use std::sync::Arc;

use crate::offers::{Machine, Offer, Quote, Universe};
use crate::state::State;

/// The rows that a search finds if it asks for nothing.
#[derive(Debug)]
pub struct Board {
    universe: Arc<Universe>,
    /// Index into the offers, and the price.
    rows: Vec<(usize, Quote)>,
}

impl Board {
    pub fn rows(&self) -> impl Iterator<Item = (&Machine, &Offer, Quote)> {
        self.rows.iter().filter_map(|(index, quote)| {
            let offer = self.universe.offers.get(*index)?;
            Some((self.universe.machines.get(offer.machine)?, offer, *quote))
        })
    }
}

/// What is kept of it.
#[derive(Debug, Default)]
pub struct Boards {
    tide: Option<Tide>,
    board: Option<Arc<Board>>,
}

impl Boards {
    /// A GPU was taken or given back.
    pub fn changed(&mut self) {
        self.board = None;
    }
}

/// The price of every machine that is there, until some time.
#[derive(Debug)]
struct Tide {
    quotes: Vec<Option<Quote>>,
    until_ms: i64,
}

impl State {
    /// What is on offer now.
    pub fn board(&mut self, now: i64) -> Arc<Board> {
        let tide = match self.board.tide.take() {
            Some(tide) if now < tide.until_ms => tide,
            _ => {
                self.board.changed();
                self.tide(now)
            }
        };
        let kept = self.board.board.take();
        let board = kept.unwrap_or_else(|| Arc::new(self.list(&tide)));
        self.board.tide = Some(tide);
        self.board.board = Some(Arc::clone(&board));
        board
    }

    fn tide(&self, now: i64) -> Tide {
        let (machines, hour) = (&self.universe.machines, self.hour(now));
        let Some(tides) = self.tides() else {
            return Tide {
                quotes: machines.iter().map(|m| Some(m.quote())).collect(),
                until_ms: i64::MAX,
            };
        };
        let quote = |index| self.quote(index, now);
        let quotes = machines.iter().enumerate();
        let until = machines.iter().map(|m| tides.offer_until(m, hour));
        Tide {
            quotes: quotes
                .map(|(index, m)| (tides.present(m, hour) && !tides.taken(m, hour)).then(|| quote(index)))
                .collect(),
            until_ms: self.ms_of(until.fold(f64::INFINITY, f64::min)),
        }
    }

    fn list(&self, tide: &Tide) -> Board {
        let quote = |machine: usize| tide.quotes.get(machine).copied().flatten();
        let free = |machine, gpu| quote(machine).is_some() && self.is_free(machine, gpu);
        let shown = self.universe.listed(free);
        let rows = shown.into_iter();
        Board {
            universe: Arc::clone(&self.universe),
            rows: rows
                .filter_map(|(index, offer)| Some((index, quote(offer.machine)?)))
                .collect(),
        }
    }
}
