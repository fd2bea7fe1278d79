//! Every route refuses who has no token, a wrong one, or one that was revoked.
//!
//! The routes are those of the document, which is made of the same list as the router; that
//! nothing is routed beside that list is checked in the source.

use super::world::World;
use serde_json::Value;
use std::path::Path;

/// Without a token by decision: health says nothing but whether the server works, and the
/// document is public with the source.
const OPEN: [&str; 1] = ["GET /healthz"];
/// Whose permission is a signature; `webhooks.rs` tests it.
const SIGNED: [&str; 1] = ["POST /api/v1/providers/vast/webhook"];
const OPEN_BESIDE_THE_DOCUMENT: [&str; 2] = ["/api/openapi.json", "/api/docs"];

/// Method and path of every operation, path parameters filled in.
fn operations() -> Vec<(String, String)> {
    let document = serde_json::to_value(dumont_server::http::openapi::document()).expect("JSON");
    let mut out = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("an item").keys() {
            let filled = path.replace(['{', '}'], "");
            out.push((method.to_uppercase(), filled));
        }
    }
    out
}

async fn ask(world: &World, method: &str, path: &str, authorization: Option<&str>) -> (u16, Value) {
    let mut request = world
        .http
        .request(
            method.parse().expect("a method"),
            format!("{}{path}", world.url()),
        )
        .json(&serde_json::json!({}));
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let response = request.send().await.expect("the server answers");
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_strangers() {
    let world = World::instant().await;
    let created = world
        .post("/tokens", serde_json::json!({ "name": "soon gone" }))
        .await;
    let revoked = created["token"].as_str().expect("a token").to_owned();
    let id = created["id"].as_str().expect("an id").to_owned();
    assert_eq!(world.call("DELETE", &format!("/tokens/{id}"), None).await.0, 200);

    let (known, _) = world.token().rsplit_once('_').expect("a token of ours");
    let zeros = "0".repeat(64);
    let strangers: [(&str, Option<String>); 7] = [
        ("token_missing", None),
        ("token_missing", Some("Basic YWRtaW46YWRtaW4=".into())),
        ("token_missing", Some(world.token().to_owned())),
        ("token_invalid", Some("Bearer nonsense".into())),
        (
            "token_invalid",
            Some(format!("Bearer dmt_01ARZ3NDEKTSV4RRFFQ69G5FAV_{zeros}")),
        ),
        // The right id, a wrong secret.
        ("token_invalid", Some(format!("Bearer {known}_{zeros}"))),
        ("token_revoked", Some(format!("Bearer {revoked}"))),
    ];
    let mut open = Vec::new();
    for (method, path) in operations() {
        let route = format!("{method} {path}");
        if OPEN.contains(&route.as_str()) {
            assert_eq!(ask(&world, &method, &path, None).await.0, 200, "{route}");
            open.push(route);
            continue;
        }
        if SIGNED.contains(&route.as_str()) {
            // A token does not stand in for it.
            let right = format!("Bearer {}", world.token());
            let (status, body) = ask(&world, &method, &path, Some(&right)).await;
            assert_eq!(
                (status, &body["code"]),
                (401, &"signature_missing".into()),
                "{route}: {body}"
            );
            continue;
        }
        for (code, authorization) in &strangers {
            let (status, body) = ask(&world, &method, &path, authorization.as_deref()).await;
            assert_eq!(status, 401, "{route} with {authorization:?}: {body}");
            assert_eq!(body["code"], *code, "{route} with {authorization:?}: {body}");
            assert!(
                body["hint"].as_str().is_some_and(|h| !h.is_empty()),
                "{route}: {body}"
            );
        }
        // And it is the token that was missing, not the route.
        let right = format!("Bearer {}", world.token());
        assert_ne!(ask(&world, &method, &path, Some(&right)).await.0, 401, "{route}");
    }
    assert_eq!(open, OPEN);
    for path in OPEN_BESIDE_THE_DOCUMENT {
        assert_eq!(ask(&world, "GET", path, None).await.0, 200, "{path}");
    }
    // The embedded store's URLs are permissions; one without a signature is none.
    let (status, _) = ask(&world, "GET", "/o/workspaces/x/packs/y", None).await;
    assert!((400..500).contains(&status), "{status}");
}

/// A route that is not in `api_routes` would be served without document, token and tests.
#[test]
fn nothing_is_routed_beside_the_document() {
    let http = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    let mut beside = Vec::new();
    let mut folders = vec![http];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(folder).expect("the folder");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let (inner, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
        folders.extend(inner);
        for path in files {
            beside.extend(routed(&path));
        }
    }
    assert_eq!(
        beside,
        [
            r#".route("/api/openapi.json", get(openapi::serve))"#,
            r#".route("/api/docs", get(docs::serve))"#,
        ],
        "put the route into `api_routes` with `#[utoipa::path]`; docs/api.md says how"
    );
}

/// The lines of a source file that add a route by hand.
fn routed(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("source text");
    let by_hand = |l: &&str| {
        [".route(", ".route_service(", ".nest_service("]
            .iter()
            .any(|r| l.contains(r))
    };
    text.lines()
        .filter(by_hand)
        .map(|l| l.trim().to_owned())
        .collect()
}
