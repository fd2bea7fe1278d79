use dumont_server::providers::ErrorClass::{self, *};
use dumont_server::providers::vast::classify;
use proptest::prelude::*;

#[test]
fn a_used_up_day_says_when_it_is_over() {
    let body = br#"{"success":false,"error":"search_quota_exceeded","msg":"x"}"#;
    let error = classify(429, body);
    assert!(
        matches!(error.class, QuotaUsedUp { resets_in } if resets_in.as_secs() <= 86_400),
        "{error:?}"
    );
}

const LIMITED: ErrorClass = RateLimited { retry_after: None };

#[test]
fn what_every_known_refusal_means() {
    let cases: &[(u16, &str, ErrorClass)] = &[
        (
            401,
            r#"{"success":false,"error":"auth_error","msg":"Invalid user key"}"#,
            Auth,
        ),
        (
            404,
            r#"{"success":false,"error":"auth_error","msg":"Invalid user key"}"#,
            Auth,
        ),
        (404, r#"{"msg":"Invalid user key"}"#, Auth),
        (
            404,
            r#"{"success":false,"msg":"Session expired. Please log in again."}"#,
            Auth,
        ),
        (404, "Invalid user key", Auth),
        (401, "<html>", Auth),
        (
            400,
            r#"{"success":false,"error":"insufficient_credit","msg":"error 400/1: add credit"}"#,
            Credit,
        ),
        (402, "", Credit),
        (
            404,
            r#"{"error":"invalid_args","msg":"error 404/3603: no_such_ask Instance type by id 5"}"#,
            OfferGone,
        ),
        (
            410,
            r#"{"error":"no_such_ask","msg":"error 410/3907: no_such_ask ... no longer available."}"#,
            OfferGone,
        ),
        (400, r#"{"message":"Offer no longer available"}"#, OfferGone),
        (200, r#"{"success":false,"error":"no_such_ask"}"#, OfferGone),
        (429, "API requests too frequent", LIMITED),
        (429, "API requests too frequent endpoint threshold=1.0", LIMITED),
        (429, r#"{"detail":"slow down"}"#, LIMITED),
        (429, "<html>Too many requests</html>", LIMITED),
        (
            400,
            r#"{"success":false,"error":"rate_limit_exceeded","msg":"x"}"#,
            LIMITED,
        ),
        (500, r#"{"error":"no_such_ask"}"#, Transient),
        (502, "<html>Bad gateway</html>", Transient),
        (503, "", Transient),
        (408, "", Transient),
        (
            400,
            r#"{"success":false,"error":"invalid_args","msg":"error 400/3467"}"#,
            Invalid,
        ),
        (
            403,
            r#"{"error":"invalid_args","msg":"Offer 5 is not your own"}"#,
            Invalid,
        ),
        (
            410,
            r#"{"success":false,"error":"deprecated_endpoint","msg":"use v1"}"#,
            Invalid,
        ),
        (
            200,
            r#"{"success":false,"error":"resources_unavailable","msg":"queued"}"#,
            OfferGone,
        ),
        (400, "{}", Invalid),
        (301, r#"{"success":true,"instances":[]}"#, Protocol),
        (404, "<html>Not found</html>", Protocol),
        (403, "<!DOCTYPE html><title>no longer available</title>", Protocol),
        (200, "", Protocol),
        (0, "", Protocol),
    ];
    for (status, body, expected) in cases {
        let error = classify(*status, body.as_bytes());
        assert_eq!(error.class, *expected, "{status} {body}: {error}");
        assert!(error.message.contains(&status.to_string()), "{error}");
    }
}

proptest! {
    /// Whatever comes, there is an answer, and it is short and safe to print.
    #[test]
    fn mangled_bodies_are_classified(status in 0u16..1000, body in proptest::collection::vec(any::<u8>(), 0..400)) {
        check(status, &body);
    }

    #[test]
    fn broken_refusals_are_classified(
        status in 100u16..600,
        cut in 0usize..120,
        at in 0usize..120,
        byte in any::<u8>(),
        text in "\\PC{0,40}",
    ) {
        let mut body = serde_json::json!({"success": false, "error": "no_such_ask", "msg": text, "new_contract": 5})
            .to_string().into_bytes();
        if let Some(b) = body.get_mut(at) {
            *b = byte;
        }
        body.truncate(body.len().saturating_sub(cut % 40));
        check(status, &body);
    }
}

fn check(status: u16, body: &[u8]) {
    let error = classify(status, body);
    assert!(error.message.chars().count() < 700);
    assert!(!error.message.chars().any(char::is_control));
    if status >= 500 {
        assert!(
            matches!(error.class, Transient),
            "5xx is never a clear answer: {error:?}"
        );
    }
    if status == 429 {
        assert!(
            matches!(error.class, RateLimited { .. } | QuotaUsedUp { .. }),
            "{error:?}"
        );
    }
}
