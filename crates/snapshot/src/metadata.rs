//! `metadata.json`, in the shape of the source document.
//!
//! For people and for tools of the old system; a restore does not read it. Keys are
//! [`printable`](crate::printable()) paths, times are seconds since the epoch as floats (and so
//! rounded: the manifest has the nanoseconds).

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
struct Metadata<'a> {
    snapshot_id: &'a str,
    timestamp: f64,
    #[serde(serialize_with = "files")]
    files: &'a [(Vec<u8>, Time)],
    total_size: u64,
    compression: &'static str,
}

fn seconds(t: Time) -> f64 {
    t.sec as f64 + f64::from(t.ns) / 1e9
}

fn files<S: Serializer>(files: &[(Vec<u8>, Time)], s: S) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(files.len()))?;
    for (path, mtime) in files {
        map.serialize_entry(&printable(path), &seconds(*mtime))?;
    }
    map.end()
}

/// The object's bytes. `taken` is this machine's clock at the snapshot's start.
pub(crate) fn encode(
    snapshot_id: &str,
    taken: Time,
    files: &[(Vec<u8>, Time)],
    total_size: u64,
    vault: &Vault,
) -> Result<Vec<u8>, Error> {
    let metadata = Metadata {
        snapshot_id,
        timestamp: seconds(taken),
        files,
        total_size,
        compression: "zstd",
    };
    let json =
        serde_json::to_vec(&metadata).map_err(|e| Error::internal(format_args!("metadata.json: {e}")))?;
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
                ns: 123_000_000,
            },
        )];
        let taken = Time {
            sec: 1_766_230_181,
            ns: 500_000_000,
        };
        let json = encode(
            "base-29049571-1766230181",
            taken,
            &files,
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
