//! What was read lately of machines and operators, and the proof that it still holds.
//!
//! Everything that may be remembered carries a stamp in the database (`changed`), which a trigger
//! sets whenever a row is written, whoever writes it. So a question names what is not known and
//! the stamp up to which the rest is; one statement answers both, in one snapshot: the rows asked
//! for, and whatever was written since. What a caller then gets is that snapshot, as if all of it
//! had been read. Nothing is believed for a while, and no other server has to say what it wrote.
//!
//! A stamp of PostgreSQL is the number of the writing transaction. Transactions end in another
//! order than they begin, so "everything below" may be said only of numbers under the lowest that
//! still ran when a snapshot was taken, its *horizon*: all those have ended, and are in it or were
//! undone. What is not in it has a number from the horizon on, and so has whatever was written
//! over that later. SQLite lets one write at a time and counts.
//!
//! Several questions may be under way. Only one that met the cache as it left it may move the
//! horizon forward; any other may have seen less than another has brought meanwhile, so it moves
//! it back to its own. Asking again for what is known already is the only cost.

use std::collections::{BTreeSet, HashMap};

/// The stamp that no change ever has: there is nothing to prove.
pub(crate) const NEVER: i64 = i64::MAX;

/// By name; the least recently asked for gives way.
#[derive(Debug)]
pub(crate) struct Memory<V> {
    held: HashMap<String, Held<V>>,
    /// Every change with a lower stamp is in what is held.
    since: i64,
    /// Which run of which database it is of.
    life: i64,
    /// Rises with every answer.
    turn: u64,
    /// Names, at most.
    most: usize,
}

#[derive(Debug)]
struct Held<V> {
    value: V,
    /// The turn that answered who asked for it last.
    used: u64,
}

/// What has to be asked of the database.
#[derive(Debug)]
pub(crate) struct Question<V> {
    /// Names to be read, in order.
    pub unknown: Vec<String>,
    /// And all that changed with this stamp or a later one.
    pub since: i64,
    known: HashMap<String, V>,
    life: i64,
    turn: u64,
}

/// What the database says in one snapshot.
#[derive(Debug)]
pub(crate) struct Answer<V> {
    pub horizon: i64,
    pub life: i64,
    /// All changes since are in it; there may be too many to list.
    pub whole: bool,
    pub found: HashMap<String, V>,
}

impl<V: Clone + Default> Memory<V> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            held: HashMap::new(),
            since: NEVER,
            life: 0,
            turn: 0,
            most,
        }
    }

    /// `afresh` trusts nothing that is held.
    pub(crate) fn ask(&mut self, names: &BTreeSet<&str>, afresh: bool) -> Question<V> {
        let proven = !afresh && !self.held.is_empty();
        let mut question = Question {
            unknown: Vec::new(),
            since: if proven { self.since } else { NEVER },
            known: HashMap::new(),
            life: self.life,
            turn: self.turn,
        };
        for &name in names {
            match self.held.get_mut(name) {
                Some(held) if proven => {
                    held.used = self.turn + 1;
                    question.known.insert(name.to_owned(), held.value.clone());
                }
                _ => question.unknown.push(name.to_owned()),
            }
        }
        question
    }

    /// Every name of the question with its value in the answer's snapshot; a name that was not
    /// found has the default. `None` where the answer does not prove what was known: it is
    /// forgotten, and has to be asked for afresh.
    pub(crate) fn learn(
        &mut self,
        question: Question<V>,
        mut answer: Answer<V>,
    ) -> Option<HashMap<String, V>> {
        if question.since != NEVER && !(answer.whole && answer.life == question.life) {
            self.forget();
            return None;
        }
        if !self.held.is_empty() && self.life != answer.life {
            self.forget();
        }
        self.since = if self.held.is_empty() || self.turn == question.turn {
            answer.horizon
        } else {
            self.since.min(answer.horizon)
        };
        self.life = answer.life;
        self.turn += 1;
        let mut view = question.known;
        for name in question.unknown {
            let value = answer.found.remove(&name).unwrap_or_default();
            let held = Held {
                value: value.clone(),
                used: self.turn,
            };
            self.held.insert(name.clone(), held);
            view.insert(name, value);
        }
        // The rest was not asked for: it has changed.
        for (name, value) in answer.found {
            if let Some(held) = self.held.get_mut(&name) {
                held.value = value.clone();
            }
            if let Some(seen) = view.get_mut(&name) {
                *seen = value;
            }
        }
        self.trim();
        Some(view)
    }

    fn forget(&mut self) {
        self.held = HashMap::new();
        self.turn += 1;
    }

    /// Down to three quarters, so that it is seldom.
    fn trim(&mut self) {
        if self.held.len() <= self.most {
            return;
        }
        let mut excess = self.held.len() - self.most / 4 * 3;
        let mut used: Vec<u64> = self.held.values().map(|h| h.used).collect();
        let (_, oldest, _) = used.select_nth_unstable(excess - 1);
        self.held.retain(|_, held| {
            let goes = excess > 0 && held.used <= *oldest;
            excess -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
