//! Numbers for ids: what a `HashMap<Digest, u32>` does for a tenth of its memory, because the ids
//! lie in a table that is there anyway.
//!
//! Ids may come from a hostile machine, which can choose them: so they are hashed with a key of
//! this process's own.

use dumont_core::id::Digest;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::hash::{BuildHasher, RandomState};

#[derive(Default)]
pub(crate) struct Numbers {
    table: HashTable<u32>,
    state: RandomState,
}

impl Numbers {
    /// `id_of` gives the id of a number that was inserted.
    pub fn find<'a>(&self, id: &Digest, id_of: impl Fn(u32) -> &'a Digest) -> Option<u32> {
        let hash = self.state.hash_one(id);
        self.table.find(hash, |n| id_of(*n) == id).copied()
    }

    /// Gives `id` this number, or says which it has already.
    pub fn insert<'a>(&mut self, id: &Digest, number: u32, id_of: impl Fn(u32) -> &'a Digest) -> Option<u32> {
        let hash_of = |n: &u32| self.state.hash_one(id_of(*n));
        match self
            .table
            .entry(self.state.hash_one(id), |n| id_of(*n) == id, hash_of)
        {
            Entry::Occupied(there) => Some(*there.get()),
            Entry::Vacant(free) => {
                free.insert(number);
                None
            }
        }
    }

    pub fn reserve<'a>(&mut self, more: usize, id_of: impl Fn(u32) -> &'a Digest) {
        self.table.reserve(more, |n| self.state.hash_one(id_of(*n)));
    }
}
