//! `metadata.json`, in the shape of the source document.
//!
//! For people and for tools of the old system; a restore does not read it. Keys are
//! [`printable`](crate::printable()) paths, times are seconds since the epoch with their
//! milliseconds (the manifest has the nanoseconds).

use crate::bytes::Put;
use crate::error::Error;
use crate::format::{HEADER_LEN, Kind, put_header, read_header};
use crate::fsutil::Time;
use crate::printable::printable;
use crate::seal::Vault;
use dumont_core::key::WorkspaceKey;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

#[derive(Serialize)]
#[serde(bound = "")]
struct Metadata<'a, F: Fn(Each<'_>)> {
    snapshot_id: &'a str,
    timestamp: f64,
    files: Files<F>,
    total_size: u64,
    compression: &'static str,
}

/// To the millisecond, as the document has it.
fn seconds(t: Time) -> f64 {
    (t.sec as f64 * 1e3 + f64::from(t.ns / 1_000_000)) / 1e3
}

/// Takes a path and its mtime.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&[u8], Time);

/// A function that gives all files in order of path: a list would be as long as what is written.
struct Files<F>(F);

impl<F: Fn(Each<'_>)> Serialize for Files<F> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        let mut result = Ok(());
        (self.0)(&mut |path, mtime| {
            if result.is_ok() {
                result = map.serialize_entry(&printable(path), &seconds(mtime));
            }
        });
        result?;
        map.end()
    }
}

/// The object's bytes. `taken` is this machine's clock at the snapshot's start; `files` gives all
/// files in order of path.
pub(crate) fn encode(
    snapshot_id: &str,
    taken: Time,
    files: impl Fn(Each<'_>),
    total_size: u64,
    vault: &Vault,
) -> Result<Vec<u8>, Error> {
    // A buffer that grows is copied, and is there twice meanwhile.
    let mut room = 256;
    files(&mut |path, _| room += path.len() + 28);
    let metadata = Metadata {
        snapshot_id,
        timestamp: seconds(taken),
        files: Files(files),
        total_size,
        compression: "zstd",
    };
    let mut json = Vec::with_capacity(room);
    serde_json::to_writer(&mut json, &metadata)
        .map_err(|e| Error::internal(format_args!("metadata.json: {e}")))?;
    if vault.mark().is_none() {
        return Ok(json);
    }
    let (mut out, mut sealed) = (Vec::new(), Vec::new());
    put_header(&mut out, Kind::Metadata, vault);
    let stored = vault.seal(&out, &json, &mut sealed)?;
    out.bytes(stored);
    Ok(out)
}

/// The JSON in a `metadata.json` of an encrypted workspace.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Key`] or [`Error::Version`], naming `object`.
pub fn open_metadata(object: &str, bytes: &[u8], key: &WorkspaceKey) -> Result<Vec<u8>, Error> {
    let vault = Vault::new(Some(key));
    let (header, _) = read_header(object, bytes, &[Kind::Metadata])?;
    header.fits(object, &vault)?;
    let (what, sealed) = bytes.split_at(HEADER_LEN);
    let mut json = Vec::new();
    let plain = vault.open(what, sealed, &mut json);
    plain.map(<[u8]>::to_vec).map_err(|e| Error::corrupt(object, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_documents_shape() {
        let files = [(
            b"test/file1.txt".to_vec(),
            Time {
                sec: 1_766_230_150,
                ns: 123_999_999,
            },
        )];
        let taken = Time {
            sec: 1_766_230_181,
            ns: 500_000_000,
        };
        let json = encode(
            "base-29049571-1766230181",
            taken,
            |each| files.iter().for_each(|(path, mtime)| each(path, *mtime)),
            10_485_760,
            &Vault::default(),
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"snapshot_id":"base-29049571-1766230181","timestamp":1766230181.5,"files":{"test/file1.txt":1766230150.123},"total_size":10485760,"compression":"zstd"}"#
        );
    }
}
