use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Changes listed at most.
const LISTED: usize = 4;

/// Values and stamps.
type Rows = BTreeMap<usize, (u32, i64)>;

/// A database whose transactions end in any order, with row locks and snapshots.
#[derive(Default)]
struct Model {
    committed: Rows,
    running: BTreeMap<i64, BTreeMap<usize, u32>>,
    next: i64,
    life: i64,
    values: u32,
}

impl Model {
    fn write(&mut self, which: usize, row: usize) {
        let free = !self.running.values().any(|rows| rows.contains_key(&row));
        let at = which % self.running.len().max(1);
        if let Some((_, rows)) = self.running.iter_mut().nth(at)
            && (free || rows.contains_key(&row))
        {
            self.values += 1;
            rows.insert(row, self.values);
        }
    }

    fn end(&mut self, which: usize, committed: bool) {
        let at = which % self.running.len().max(1);
        let Some(&number) = self.running.keys().nth(at) else {
            return;
        };
        let rows = self.running.remove(&number).unwrap();
        if committed {
            let stamped = rows.into_iter().map(|(row, value)| (row, (value, number)));
            self.committed.extend(stamped);
        }
    }

    /// Another database in its place: other values, no word of what changed.
    fn replaced(&mut self) {
        self.running.clear();
        self.life += 1;
        for (value, stamp) in self.committed.values_mut() {
            self.values += 1;
            (*value, *stamp) = (self.values, 0);
        }
    }

    fn answer(&self, question: &Question<u32>) -> Answer<u32> {
        let changed = || self.committed.iter().filter(|(_, (_, n))| *n >= question.since);
        let asked = question.unknown.iter().map(|n| n.parse::<usize>().unwrap());
        let asked = asked.filter_map(|row| Some((row, self.committed.get(&row)?.0)));
        Answer {
            horizon: self.running.keys().next().copied().unwrap_or(self.next),
            life: self.life,
            whole: changed().count() < LISTED,
            found: changed()
                .map(|(row, (value, _))| (*row, *value))
                .take(LISTED)
                .chain(asked)
                .map(|(row, value)| (row.to_string(), value))
                .collect(),
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Begin,
    Write(usize, usize),
    End(usize, bool),
    Replace,
    Ask(Vec<usize>),
    Read(usize),
    Learn(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let any = 0..8_usize;
    prop_oneof![
        3 => Just(Act::Begin),
        6 => (any.clone(), any.clone()).prop_map(|(which, row)| Act::Write(which, row)),
        4 => (any.clone(), prop::bool::weighted(0.8)).prop_map(|(which, done)| Act::End(which, done)),
        1 => Just(Act::Replace),
        4 => prop::collection::vec(any.clone(), 0..6).prop_map(Act::Ask),
        5 => any.clone().prop_map(Act::Read),
        5 => any.prop_map(Act::Learn),
    ]
}

/// A question on its way: read by the database or not yet, and what a reader without any memory
/// sees in that moment.
struct Under {
    rows: Vec<usize>,
    question: Question<u32>,
    answer: Option<(Answer<u32>, Rows)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    /// Whatever is written, asked and answered in whatever order, nobody can tell the difference.
    #[test]
    fn what_is_remembered_equals_what_is_read(
        acts in prop::collection::vec(act(), 1..120), most in 2..9_usize,
    ) {
        let (mut model, mut memory) = (Model { next: 1, ..Model::default() }, Memory::new(most));
        let mut under: Vec<Under> = Vec::new();
        for act in acts {
            match act {
                Act::Begin => {
                    model.running.insert(model.next, BTreeMap::new());
                    model.next += 1;
                }
                Act::Write(which, row) => model.write(which, row),
                Act::End(which, committed) => model.end(which, committed),
                Act::Replace => model.replaced(),
                Act::Ask(rows) => {
                    let names: Vec<String> = rows.iter().map(usize::to_string).collect();
                    let question = memory.ask(&names.iter().map(String::as_str).collect(), false);
                    under.push(Under { rows, question, answer: None });
                }
                Act::Read(which) => {
                    let at = which % under.len().max(1);
                    if let Some(one) = under.get_mut(at) {
                        let seen = model.committed.clone();
                        one.answer.get_or_insert_with(|| (model.answer(&one.question), seen));
                    }
                }
                Act::Learn(which) => {
                    let ready = |u: &Under| u.answer.is_some();
                    let at: Vec<usize> = (0..under.len()).filter(|i| ready(&under[*i])).collect();
                    let Some(at) = at.get(which % at.len().max(1)) else { continue };
                    let one = under.remove(*at);
                    let (answer, seen) = one.answer.unwrap();
                    let Some(view) = memory.learn(one.question, answer) else { continue };
                    for row in one.rows {
                        let want = seen.get(&row).map_or(0, |(value, _)| *value);
                        prop_assert_eq!(view[&row.to_string()], want, "row {}", row);
                    }
                    prop_assert!(memory.held.len() <= most);
                }
            }
        }
    }
}

fn answer(found: &[(&str, u32)], horizon: i64) -> Answer<u32> {
    Answer {
        horizon,
        life: 1,
        whole: true,
        found: found.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
    }
}

fn learned(memory: &mut Memory<u32>, names: &[&str], horizon: i64) {
    let question = memory.ask(&names.iter().copied().collect(), false);
    memory.learn(question, answer(&[], horizon)).unwrap();
}

#[test]
fn what_is_known_is_not_asked_for_again() {
    let mut memory = Memory::new(10);
    let first = memory.ask(&BTreeSet::from(["a", "b"]), false);
    assert_eq!((first.unknown.len(), first.since), (2, NEVER));
    memory.learn(first, answer(&[("a", 7)], 5)).unwrap();
    let second = memory.ask(&BTreeSet::from(["a", "b", "c"]), false);
    assert_eq!(
        (second.unknown.as_slice(), second.since),
        (&["c".to_owned()][..], 5)
    );
    let view = memory.learn(second, answer(&[("b", 9), ("x", 1)], 6)).unwrap();
    assert_eq!((view["a"], view["b"], view["c"]), (7, 9, 0));
    assert_eq!(view.len(), 3, "what was not asked for is not shown");
    assert_eq!(memory.held.len(), 3, "nor held");
}

#[test]
fn the_least_recently_asked_for_gives_way() {
    let mut memory = Memory::new(4);
    learned(&mut memory, &["a", "b"], 1);
    learned(&mut memory, &["c", "d"], 2);
    learned(&mut memory, &["a", "b", "e"], 3);
    let left = memory.ask(&BTreeSet::from(["a", "b", "c", "d", "e"]), false);
    assert_eq!(left.unknown, ["c", "d"]);
    learned(&mut memory, &["1", "2", "3", "4", "5", "6", "7", "8"], 4);
    assert_eq!(memory.held.len(), 3, "as many of one search as there is room for");
}

#[test]
fn a_database_that_cannot_prove_it_is_asked_afresh() {
    let mut memory = Memory::new(4);
    for bad in [
        Answer {
            whole: false,
            ..answer(&[], 9)
        },
        Answer {
            life: 2,
            ..answer(&[], 9)
        },
    ] {
        learned(&mut memory, &["a"], 1);
        let question = memory.ask(&BTreeSet::from(["a"]), false);
        assert!(memory.learn(question, bad).is_none());
        let again = memory.ask(&BTreeSet::from(["a"]), false);
        assert_eq!((again.unknown.len(), again.since), (1, NEVER));
    }
    learned(&mut memory, &["a"], 1);
    let afresh = memory.ask(&BTreeSet::from(["a"]), true);
    assert_eq!((afresh.unknown.len(), afresh.since), (1, NEVER));
}
