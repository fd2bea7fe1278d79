//! The API as a whole: its document, who is let in, and whether it keeps its word.

#[path = "../world/mod.rs"]
mod world;

mod document;
