//! Multipart uploads that nobody will complete: their parts are stored and paid for.
//!
//! They are found by listing what is under way, so a crash between beginning an upload and
//! writing that down loses nothing. An object takes minutes; after a day nobody works on it.

use super::S3Store;
use super::refusal::tag;
use crate::objects::{ObjectError, ObjectStore};
use std::time::{Duration, SystemTime};

pub const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Pages of a thousand that one sweep looks at; the next goes on.
const MOST_PAGES: usize = 100;

/// An upload under way, as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub key: String,
    pub upload_id: String,
    pub begun: SystemTime,
}

impl S3Store {
    pub(super) async fn abort_abandoned(&self, older: Duration) -> Result<usize, ObjectError> {
        let now = SystemTime::now();
        let mut aborted = 0;
        for open in self.open_uploads().await? {
            if now.duration_since(open.begun).is_ok_and(|age| age >= older) {
                tracing::info!(key = %open.key, "aborting an abandoned upload");
                self.abandon(&open.key, &open.upload_id).await?;
                aborted += 1;
            }
        }
        Ok(aborted)
    }

    /// Below our own prefix: a bucket may have other users.
    pub(super) async fn open_uploads(&self) -> Result<Vec<Open>, ObjectError> {
        let mut found = Vec::new();
        let mut marker: Option<(String, String)> = None;
        for _ in 0..MOST_PAGES {
            let mut query = vec![
                ("max-uploads", "1000"),
                ("prefix", "workspaces/"),
                ("uploads", ""),
            ];
            if let Some((key, id)) = &marker {
                query.push(("key-marker", key));
                query.push(("upload-id-marker", id));
                query.sort_unstable();
            }
            let text = match self.list_signed("list uploads", query).await {
                Ok(text) => text,
                // Such a store ends them by itself, or keeps none.
                Err(error) if error.code() == "not_implemented" => return Ok(found),
                Err(error) => return Err(error),
            };
            found.extend(parse(&text));
            let next = tag(&text, "NextKeyMarker").zip(tag(&text, "NextUploadIdMarker"));
            marker = match next {
                Some((key, id)) if tag(&text, "IsTruncated") == Some("true") => {
                    Some((key.to_owned(), id.to_owned()))
                }
                _ => break,
            };
        }
        Ok(found)
    }
}

/// Our keys and the ids of uploads hold nothing that XML would escape; what does is not ours.
fn parse(text: &str) -> Vec<Open> {
    text.split("<Upload>")
        .skip(1)
        .filter_map(|upload| {
            let begun: jiff::Timestamp = tag(upload, "Initiated")?.parse().ok()?;
            let key = tag(upload, "Key")?;
            let upload_id = tag(upload, "UploadId")?;
            (!key.contains('&') && !upload_id.contains('&')).then(|| Open {
                key: key.to_owned(),
                upload_id: upload_id.to_owned(),
                begun: begun.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_of_uploads_is_read() {
        // From the API reference, shortened.
        let text = "<ListMultipartUploadsResult><Bucket>bucket</Bucket><IsTruncated>false</IsTruncated>\
            <Upload><Key>workspaces/a/packs/1</Key><UploadId>XMgb</UploadId><Initiator><ID>x</ID></Initiator>\
            <Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload>\
            <Upload><Key>broken</Key></Upload></ListMultipartUploadsResult>";
        let found = parse(text);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].key.as_str(), found[0].upload_id.as_str()),
            ("workspaces/a/packs/1", "XMgb")
        );
        assert!(parse("<html>not S3</html>").is_empty());
    }
}
