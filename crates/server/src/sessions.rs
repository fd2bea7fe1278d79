//! The open links of this process, by instance.
//!
//! Links are an optimisation, never a fact: whoever needs one opens it anew if it is gone.
//! That is what makes a restarted server resume without knowing what it had open.

use crate::link::Link;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Default)]
pub struct Sessions {
    links: Mutex<HashMap<String, Arc<Link>>>,
}

impl Sessions {
    /// The live link to this instance, if this process has one.
    pub fn get(&self, instance_key: &str) -> Option<Arc<Link>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.get(instance_key).is_some_and(|l| l.ended().is_some()) {
            links.remove(instance_key);
        }
        links.get(instance_key).cloned()
    }

    pub fn put(&self, instance_key: &str, link: Arc<Link>) {
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(instance_key.to_owned(), link);
    }

    pub fn remove(&self, instance_key: &str) -> Option<Arc<Link>> {
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(instance_key)
    }
}
