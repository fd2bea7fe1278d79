//! The embedded object store behind a real server, as agents and attackers see it.

mod http;
mod scene;
mod trait_side;
