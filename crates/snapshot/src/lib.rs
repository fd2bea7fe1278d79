//! The snapshot engine: a directory in, immutable objects out, and back again bit for bit.
//!
//! It is synchronous and uses plain threads, because it runs inside a small static agent on a
//! rented machine that has no async runtime. It knows no URLs, keys or stores: everything goes
//! through [`ObjectSink`] and [`ObjectSource`], and whoever implements them decides what may be
//! read or created. `docs/snapshot-format.md` says how the objects look.
//!
//! Two rules shape all of it:
//!
//! * **A snapshot does not exist until the controller says so.** The engine uploads objects and
//!   reports them; the cache that makes the next snapshot cheap is only written as *pending*,
//!   and becomes valid when a later request names this snapshot as its parent.
//! * **Objects are hostile until proven otherwise.** A restore checks every chunk against its
//!   id, every name before it is used, and every size before anything is allocated for it.

mod blob;
mod bytes;
mod cache;
mod chunk;
mod codec;
mod compact;
mod dir_store;
mod error;
mod events;
mod extras;
mod format;
mod fsutil;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod metadata;
mod numbers;
mod pack;
mod printable;
mod reader;
mod repair;
mod restore;
mod scan;
mod seal;
mod snapshot;
mod store;
mod tree;
mod upload;

pub use chunk::{AVG_CHUNK, MAX_CHUNK, MIN_CHUNK};
pub use compact::{Compaction, compact, packs_of};
pub use dir_store::DirStore;
pub use error::Error;
pub use events::{Events, NoEvents};
pub use format::FORMAT_VERSION;
pub use index::{ChunkPlace, Index};
pub use metadata::open_metadata;
pub use pack::{PackEntry, read_pack};
pub use printable::printable;
pub use reader::{Change, ChangeKind, CheckReport, Damage, Entry, EntryKind, Reader, check};
pub use repair::{Repair, repair};
pub use restore::{RestoreOptions, compare_models, restore, verify_tree};
pub use snapshot::{SnapshotOptions, snapshot};
pub use store::{ObjectSink, ObjectSource, StoreError};
