//! Deleting for good where a bucket keeps versions.
//!
//! A plain DELETE there lays a marker over what stays stored and paid for; a DELETE of the one
//! version that was noted leaves what a repeated or foreign PUT had put beside it. So all of a
//! key's versions are listed and deleted one by one: markers first, then from the oldest on. A crash in between leaves the
//! newest in its place, where a listing finds it and the next round goes on.

use super::S3Store;
use super::refusal::tag;
use crate::objects::ObjectError;
use reqwest::Method;
use rusty_s3::signing::sign;

/// Pages of a thousand; keys are used once, so one is the rule.
const MOST_PAGES: usize = 100;

/// A version of an object, or a marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub key: String,
    pub id: String,
    pub marker: bool,
}

impl S3Store {
    pub(super) async fn delete_versions(&self, key: &str) -> Result<(), ObjectError> {
        let mut all = self.versions_of(key).await?;
        // They come newest first.
        all.reverse();
        all.sort_by_key(|v| !v.marker);
        for version in all {
            self.delete_version(key, Some(&version.id)).await?;
        }
        Ok(())
    }

    /// Newest first.
    pub(super) async fn versions_of(&self, key: &str) -> Result<Vec<Version>, ObjectError> {
        let mut found = Vec::new();
        let mut marker: Option<(String, String)> = None;
        for _ in 0..MOST_PAGES {
            let mut query = vec![("prefix", key), ("versions", "")];
            if let Some((key, id)) = &marker {
                query.push(("key-marker", key));
                query.push(("version-id-marker", id));
                query.sort_unstable();
            }
            let text = self.list_signed("list versions", query).await?;
            found.extend(parse(&text));
            let next = tag(&text, "NextKeyMarker").zip(tag(&text, "NextVersionIdMarker"));
            marker = match next {
                Some((key, id)) if tag(&text, "IsTruncated") == Some("true") => {
                    Some((key.to_owned(), id.to_owned()))
                }
                _ => break,
            };
        }
        found.retain(|v| v.key == key);
        Ok(found)
    }

    /// A listing that the library does not know, signed anew for each try; `query` is sorted.
    pub(super) async fn list_signed(
        &self,
        what: &str,
        query: Vec<(&str, &str)>,
    ) -> Result<String, ObjectError> {
        let (bucket, key) = (&self.client.bucket, &self.client.credentials);
        let url = || {
            sign(
                &jiff::Timestamp::now(),
                rusty_s3::Method::Get,
                bucket.base_url().clone(),
                key.key(),
                key.secret(),
                key.token(),
                bucket.region(),
                300,
                query.iter().copied(),
                std::iter::empty(),
            )
        };
        let answer = self.client.send_signed(what, Method::GET, url).await?;
        if answer.ok() {
            return Ok(answer.text().into_owned());
        }
        Err(self.unexpected(what, &answer))
    }
}

/// In the order of the listing. Our keys and the ids of versions hold nothing that XML would
/// escape; what does is not ours.
pub(super) fn parse(text: &str) -> Vec<Version> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = [rest.find("<Version>"), rest.find("<DeleteMarker>")]
        .into_iter()
        .flatten()
        .min()
    {
        let marker = rest[at..].starts_with("<DeleteMarker>");
        let end = if marker { "</DeleteMarker>" } else { "</Version>" };
        let Some(length) = rest[at..].find(end) else { break };
        let one = &rest[at..at + length];
        if let (Some(key), Some(id)) = (tag(one, "Key"), tag(one, "VersionId"))
            && !key.contains('&')
            && !id.contains('&')
        {
            found.push(Version {
                key: key.to_owned(),
                id: id.to_owned(),
                marker,
            });
        }
        rest = &rest[at + length..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_markers_are_read_in_their_order() {
        // From the API reference, shortened.
        let text = "<ListVersionsResult><IsTruncated>false</IsTruncated><DeleteMarker><Key>k</Key><VersionId>3</VersionId>\
            <IsLatest>true</IsLatest></DeleteMarker><Version><Key>k</Key><VersionId>2</VersionId></Version>\
            <Version><Key>k</Key><VersionId>null</VersionId><Owner><ID>x</ID></Owner></Version><Version><Key>k&amp;</Key>";
        let found: Vec<_> = parse(text).into_iter().map(|v| (v.id, v.marker)).collect();
        assert_eq!(
            found,
            [("3".into(), true), ("2".into(), false), ("null".into(), false)]
        );
        assert!(parse("<html>not S3</html>").is_empty());
    }
}
