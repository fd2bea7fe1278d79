//! What a store's refusal means, and what a person does about it.

use crate::objects::{ObjectError, StoreRefusal};

/// The few words of a store's XML that matter here; none of them can hold markup.
pub fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value.trim())
}

/// Statuses and codes by which a store says "later". 501 is not one of them: a store that
/// lacks something will lack it on the next try, too.
pub fn worth_repeating(status: u16, code: &str) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
        || matches!(
            code,
            "SlowDown" | "InternalError" | "RequestTimeout" | "ServiceUnavailable"
        )
}

/// An answer that is not a success, in words. `place` is the bucket and its endpoint.
pub fn explain(place: &str, what: &str, status: u16, body: &str, region: Option<&str>) -> ObjectError {
    let code = tag(body, "Code").unwrap_or("");
    let said: String = tag(body, "Message").unwrap_or("").chars().take(200).collect();
    let wanted = tag(body, "Region").or(region);
    let (ours, hint): (&'static str, String) = match (status, code) {
        (507, _) | (_, "QuotaExceeded" | "EntityTooLarge" | "InsufficientStorage" | "XMinioStorageFull") => {
            return ObjectError::Full(place.to_owned());
        }
        (_, "NoSuchBucket") => (
            "bucket_missing",
            "create the bucket, or correct its name (B2_BUCKET or S3_BUCKET)".into(),
        ),
        (301 | 307 | 308, _)
        | (
            _,
            "AuthorizationHeaderMalformed"
            | "AuthorizationQueryParametersError"
            | "PermanentRedirect"
            | "IllegalLocationConstraintException",
        ) => (
            "wrong_region",
            match wanted {
                Some(region) => format!("set AWS_REGION={region} (and that region's endpoint)"),
                None => "set the bucket's own region (AWS_REGION) and endpoint".into(),
            },
        ),
        (_, "RequestTimeTooSkewed") => ("clock_skewed", "set this machine's clock, e.g. with NTP".into()),
        (_, "ExpiredToken") => (
            "credentials_expired",
            "renew the session token, or use a lasting key".into(),
        ),
        (401, _) | (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken") => (
            "bad_credentials",
            "check the key id and the secret (B2_KEY_ID, B2_APPLICATION_KEY or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), \
             and that they belong to this endpoint and region"
                .into(),
        ),
        (_, "AccessDenied") if said.to_lowercase().contains("expired") => (
            "url_expired",
            "ask for a fresh URL; if it repeats, compare this machine's clock with the store's".into(),
        ),
        (403, _) => (
            "access_denied",
            "the key needs to list, read, write and delete in this bucket".into(),
        ),
        (501, _) => (
            "not_implemented",
            "this store lacks something dumont needs; run `dumont doctor`".into(),
        ),
        (s, _) if worth_repeating(s, code) => (
            "store_unavailable",
            "the store is busy or down; look at its status page, then try again".into(),
        ),
        _ => (
            "store_refused",
            "look the code up in the store's documentation".into(),
        ),
    };
    let code = if code.is_empty() {
        String::new()
    } else {
        format!(" {code}")
    };
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    refused(
        ours,
        format!("{what} in {place}: {status}{code}{said}"),
        hint,
        ours == "store_unavailable",
    )
}

/// The store was not reached, or the connection broke.
pub fn unreached(place: &str, what: &str, error: &reqwest::Error) -> ObjectError {
    let mut cause: &dyn std::error::Error = error;
    let mut certificate = false;
    while let Some(deeper) = cause.source() {
        cause = deeper;
        certificate |= cause.to_string().contains("certificate");
    }
    if certificate {
        return refused(
            "store_certificate",
            format!("{what} in {place}: {cause}"),
            "check this machine's clock; a private authority's certificate goes into S3_CA_FILE".into(),
            false,
        );
    }
    let cause = if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        cause.to_string()
    };
    refused(
        "store_unreachable",
        format!("{what} in {place}: {cause}"),
        "check the endpoint (B2_ENDPOINT or AWS_ENDPOINT_URL) and this machine's network".into(),
        true,
    )
}

pub fn refused(code: &'static str, message: String, hint: String, transient: bool) -> ObjectError {
    ObjectError::Store(Box::new(StoreRefusal {
        code,
        message,
        hint,
        transient,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies as AWS and B2 document them.
    #[test]
    fn each_refusal_says_what_to_do() {
        let body = |code: &str, rest: &str| format!("<?xml?><Error><Code>{code}</Code>{rest}</Error>");
        let cases = [
            (404, body("NoSuchBucket", ""), "bucket_missing"),
            (
                400,
                body("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
                "wrong_region",
            ),
            (301, String::new(), "wrong_region"),
            (403, body("RequestTimeTooSkewed", ""), "clock_skewed"),
            (403, body("SignatureDoesNotMatch", ""), "bad_credentials"),
            (401, body("Unauthorized", ""), "bad_credentials"),
            (
                403,
                body("AccessDenied", "<Message>Request has expired</Message>"),
                "url_expired",
            ),
            (403, body("AccessDenied", ""), "access_denied"),
            (501, body("NotImplemented", ""), "not_implemented"),
            (503, body("SlowDown", ""), "store_unavailable"),
            (507, String::new(), "store_full"),
        ];
        for (status, body, expected) in cases {
            let error = explain("bucket b", "put k", status, &body, None);
            assert_eq!(error.code(), expected, "{status} {body}");
            assert!(!error.hint().is_empty());
        }
        let error = explain(
            "b",
            "put",
            400,
            &body("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
            None,
        );
        assert!(error.hint().contains("AWS_REGION=eu-west-1"));
    }

    #[test]
    fn what_a_store_lacks_is_not_asked_for_again() {
        assert!(
            [500, 502, 503, 504]
                .iter()
                .all(|status| worth_repeating(*status, ""))
        );
        assert!(worth_repeating(400, "SlowDown"));
        assert!(
            [501, 400, 403, 404, 412]
                .iter()
                .all(|status| !worth_repeating(*status, ""))
        );
    }
}
