//! What crosses the network: the REST bodies (`rest`, `history`), shared by server and CLI so
//! that they cannot drift, and the frames between controller and agent (`agent`).

pub mod agent;
pub mod frame;
pub mod history;
pub mod machines;
pub mod mux;
pub mod offers;
pub mod rest;
