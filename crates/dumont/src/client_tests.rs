//! The client against a server that answers from a script.

use super::*;
use crate::fail::body_of;
use std::io::{Read, Write};
use std::net::TcpListener;

/// Answers each connection with the next response; gives the requests back.
pub fn serve(responses: Vec<(u16, String)>) -> (Client, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let handle = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for (status, body) in responses {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 65536];
            let n = stream.read(&mut buffer).unwrap();
            seen.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
        }
        seen
    });
    (Client::new(&url, "secret", None).unwrap(), handle)
}

#[tokio::test]
async fn an_error_body_comes_through_word_for_word() {
    let body = r#"{"code":"workspace_not_found","message":"no workspace \"x\"","hint":"see the list"}"#;
    let (client, handle) = serve(vec![(404, body.into())]);
    let e = client
        .get::<serde_json::Value>("/workspaces/x")
        .await
        .unwrap_err();
    let got = body_of(&e);
    assert_eq!(
        (got.code.as_str(), got.hint.as_str()),
        ("workspace_not_found", "see the list")
    );
    assert!(!is_unreachable(&e));
    let seen = handle.join().unwrap();
    assert!(
        seen[0].starts_with("GET /api/v1/workspaces/x HTTP/1.1"),
        "{}",
        seen[0]
    );
    assert!(seen[0].contains("authorization: Bearer secret"), "{}", seen[0]);
}

#[tokio::test]
async fn strange_answers_are_named_with_their_status() {
    let (client, handle) = serve(vec![(502, "<html>bad gateway</html>".into()), (200, "[]".into())]);
    let body = body_of(&client.get::<serde_json::Value>("/a").await.unwrap_err());
    assert!(
        body.message.contains("502") && body.message.contains("bad gateway"),
        "{body:?}"
    );
    let e = client.get::<Page<u32>>("/b").await.unwrap_err();
    assert!(body_of(&e).hint.contains("--version"), "{e:?}");
    handle.join().unwrap();
}

#[tokio::test]
async fn lists_follow_every_page_and_stop_at_a_repeating_one() {
    let page = |items: &str, next: &str| (200, format!(r#"{{"items":[{items}],"next":{next}}}"#));
    let (client, handle) = serve(vec![page("1,2", r#""a b""#), page("3", r#""a b""#)]);
    assert_eq!(client.list::<u32>("/n?x=1").await.unwrap(), [1, 2, 3]);
    let seen = handle.join().unwrap();
    assert!(seen[0].starts_with("GET /api/v1/n?x=1&limit=500 "), "{}", seen[0]);
    assert!(
        seen[1].starts_with("GET /api/v1/n?x=1&limit=500&after=a%20b "),
        "{}",
        seen[1]
    );
}

#[tokio::test]
async fn nobody_there_says_how_to_start_one() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let client = Client::new(&format!("http://127.0.0.1:{port}/"), "t", None).unwrap();
    let e = client.get::<serde_json::Value>("/workspaces").await.unwrap_err();
    assert!(is_unreachable(&e));
    let body = body_of(&e);
    assert!(
        body.hint.contains("dumont serve") && body.message.contains(&port.to_string()),
        "{body:?}"
    );
}

#[test]
fn urls_and_tokens_that_cannot_be_right_are_refused() {
    for bad in ["", "127.0.0.1:7070", "ftp://x", "http://"] {
        assert!(Client::new(bad, "t", None).is_err(), "{bad:?}");
    }
    for bad in ["", "a b", "a\nb", "é"] {
        assert!(Client::new("http://x", bad, None).is_err(), "{bad:?}");
    }
}

#[test]
fn a_query_holds_what_was_said_and_no_more() {
    #[derive(serde::Serialize)]
    struct Query {
        gpu: Option<&'static str>,
        limit: Option<u32>,
        all: Option<bool>,
    }
    let query = |gpu, limit, all| query_of(&Query { gpu, limit, all });
    assert_eq!(query(None, None, None), "");
    assert_eq!(
        query(Some("RTX 4090&x=1"), None, Some(true)),
        "?all=true&gpu=RTX%204090%26x%3D1"
    );
    assert_eq!(query(None, Some(3), None), "?limit=3");
}
