//! HTTP for agents: `PUT`, `GET` and `HEAD` on `/o/{key}` with a signed query.
//!
//! A peer that gets an error before it has sent its body would often see only a broken pipe.
//! So a refused upload is read to its end and thrown away, within bounds, before the answer.

use super::FileStore;
use super::disk::{Found, Incoming, Published};
use super::refusal::Refusal;
use super::sign::{Act, Refused, Signed};
use crate::objects::ObjectError;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use bytes::Bytes;
use dumont_core::id::Digest;
use futures::{StreamExt, stream};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// One piece of disk work: large enough that handing it over costs nothing.
const PIECE: usize = 1 << 20;
/// What a refused upload may still send.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);

pub fn router(store: Arc<FileStore>) -> Router {
    Router::new()
        .route("/o/{*key}", routing::put(put).get(get).head(get))
        .with_state(store)
}

type Checked = Result<Query<Signed>, QueryRejection>;

async fn put(
    State(store): State<Arc<FileStore>>,
    Path(key): Path<String>,
    query: Checked,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut stream = body.into_data_stream();
    match upload(&store, &key, query, &headers, &mut stream).await {
        Ok(Published::New) => StatusCode::CREATED.into_response(),
        Ok(Published::Same) => StatusCode::OK.into_response(),
        Err(refusal) => {
            drain(&mut stream).await;
            refusal.into_response()
        }
    }
}

async fn upload(
    store: &FileStore,
    key: &str,
    query: Checked,
    headers: &HeaderMap,
    stream: &mut BodyDataStream,
) -> Result<Published, Refusal> {
    let Act::Put { size, digest } = allowed(store, key, query)? else {
        return Err(Refusal::signature());
    };
    check_length(headers, size)?;
    // A repetition of what succeeded is not written again, only its answer.
    let owned = key.to_owned();
    if let Some(held) = store.on_disk(move |disk| disk.head(&owned)).await? {
        if held.size != size || held.digest != Some(digest) {
            return Err(ObjectError::Exists(key.into()).into());
        }
        drain(stream).await;
        return Ok(Published::Same);
    }
    let incoming = receive(store, size, stream).await?;
    check_content(&incoming, size, digest)?;
    let owned = key.to_owned();
    Ok(store.on_disk(move |disk| disk.publish(incoming, &owned)).await?)
}

/// Writes and hashes one piece while the next one comes in.
async fn receive(store: &FileStore, size: u64, stream: &mut BodyDataStream) -> Result<Incoming, Refusal> {
    let mut incoming = Pending::Ready(store.on_disk(|disk| disk.receive()).await?);
    let (mut piece, mut waiting, mut seen) = (Vec::new(), 0, 0u64);
    loop {
        let next = tokio::time::timeout(store.upload_idle, stream.next()).await;
        let chunk = match next.map_err(|_| Refusal::broken("nothing came for too long"))? {
            Some(Ok(chunk)) => chunk,
            Some(Err(_)) => return Err(Refusal::broken("the connection ended early")),
            None => break,
        };
        seen += chunk.len() as u64;
        if seen > size {
            return Err(Refusal::size(size));
        }
        waiting += chunk.len();
        piece.push(chunk);
        if waiting >= PIECE {
            incoming = Pending::Writing(write(incoming.ready().await?, std::mem::take(&mut piece)));
            waiting = 0;
        }
    }
    Ok(write(incoming.ready().await?, piece)
        .await
        .map_err(io::Error::other)
        .map_err(ObjectError::Io)??)
}

enum Pending {
    Ready(Incoming),
    Writing(JoinHandle<Result<Incoming, ObjectError>>),
}

impl Pending {
    async fn ready(self) -> Result<Incoming, ObjectError> {
        match self {
            Self::Ready(incoming) => Ok(incoming),
            Self::Writing(work) => work.await.map_err(io::Error::other)?,
        }
    }
}

fn write(mut incoming: Incoming, piece: Vec<Bytes>) -> JoinHandle<Result<Incoming, ObjectError>> {
    tokio::task::spawn_blocking(move || {
        piece.iter().try_for_each(|chunk| incoming.write(chunk))?;
        Ok(incoming)
    })
}

fn check_length(headers: &HeaderMap, size: u64) -> Result<(), Refusal> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) if length == size => Ok(()),
        Some(_) => Err(Refusal::size(size)),
        None => Err(Refusal::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "the upload does not say its length".into(),
            "send the object with a Content-Length header",
        )),
    }
}

fn check_content(incoming: &Incoming, size: u64, digest: Digest) -> Result<(), Refusal> {
    if incoming.size() != size {
        return Err(Refusal::size(size));
    }
    let got = incoming.digest();
    if got != digest {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "digest_mismatch",
            format!("the content has the BLAKE3 digest {got}, the grant is for {digest}"),
            "read the object again and ask for a new grant",
        ));
    }
    Ok(())
}

async fn drain(stream: &mut BodyDataStream) {
    let mut left = DRAIN_BYTES;
    let reading = async {
        while let Some(Ok(chunk)) = stream.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

async fn get(
    State(store): State<Arc<FileStore>>,
    Path(key): Path<String>,
    query: Checked,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    if allowed(&store, &key, query)? != Act::Get {
        return Err(Refusal::signature());
    }
    let owned = key.clone();
    let found = store.on_disk(move |disk| disk.find(&owned)).await?;
    let Found { file, size, digest } = found.ok_or(ObjectError::Missing(key))?;
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let (status, from, to) = match wanted_range(range, size) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        Range::Outside => return Ok(outside(size)),
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        file_body(file, from, to)
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
    if status == StatusCode::PARTIAL_CONTENT {
        // `wanted_range` never gives an empty part.
        set(
            headers,
            header::CONTENT_RANGE,
            &format!("bytes {from}-{}/{size}", to - 1),
        );
    }
    if let Some(digest) = digest {
        set(headers, header::ETAG, &format!("\"{digest}\""));
    }
    Ok(response)
}

fn set(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Reads one piece ahead of what the peer takes. A peer that takes nothing holds two pieces
/// of memory and no thread.
fn file_body(file: File, from: u64, to: u64) -> Body {
    let file = Arc::new(file);
    let first = (from < to).then(|| (read(&file, from, to), from));
    let pieces = stream::unfold(first, move |state| {
        let file = Arc::clone(&file);
        async move {
            let (work, at) = state?;
            let next = at + PIECE as u64;
            let ahead = (next < to).then(|| (read(&file, next, to), next));
            match work.await.map_err(io::Error::other).flatten() {
                Ok(piece) => Some((Ok(piece), ahead)),
                Err(e) => Some((Err(e), None)),
            }
        }
    });
    Body::from_stream(pieces)
}

fn read(file: &Arc<File>, at: u64, to: u64) -> JoinHandle<io::Result<Bytes>> {
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || {
        let length = usize::try_from(to - at).map_or(PIECE, |n| n.min(PIECE));
        let mut piece = vec![0; length];
        file.read_exact_at(&mut piece, at)?;
        Ok(Bytes::from(piece))
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// From the first byte up to but without the last, never empty.
    Part(u64, u64),
    Outside,
}

/// One range; what cannot be read, or asks for several, is answered with the whole object, as
/// HTTP has it.
fn wanted_range(header: Option<&str>, size: u64) -> Range {
    let parse = |header: &str| {
        let (from, to) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |s: &str| {
            s.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| s.parse::<u64>().ok())?
        };
        Some(match (from.is_empty(), to.is_empty()) {
            (true, true) => return None,
            (true, false) => (size.saturating_sub(number(to)?), size),
            (false, true) => (number(from)?, size),
            (false, false) if number(from)? > number(to)? => return None,
            (false, false) => (number(from)?, number(to)?.saturating_add(1).min(size)),
        })
    };
    match header.and_then(parse) {
        None => Range::Whole,
        Some((from, to)) if from < to => Range::Part(from, to),
        Some(_) => Range::Outside,
    }
}

fn outside(size: u64) -> Response {
    let mut response = Refusal::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "range_not_satisfiable",
        format!("the range lies outside of an object of {size} bytes"),
        "ask for bytes that the object has",
    )
    .into_response();
    set(
        response.headers_mut(),
        header::CONTENT_RANGE,
        &format!("bytes */{size}"),
    );
    response
}

fn allowed(store: &FileStore, key: &str, query: Checked) -> Result<Act, Refusal> {
    let Ok(Query(signed)) = query else {
        return Err(Refusal::signature());
    };
    match store.signer.check(key, &signed, store.now()) {
        Ok(act) => Ok(act),
        Err(Refused::Forged) => Err(Refusal::signature()),
        Err(Refused::Expired { at }) => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "grant_expired",
            format!("this URL worked until {at} (Unix seconds)"),
            "ask the controller for a new one",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let cases = [
            (None, Range::Whole),
            (Some("bytes=0-0"), Range::Part(0, 1)),
            (Some("bytes=2-5"), Range::Part(2, 6)),
            (Some("bytes=2-"), Range::Part(2, 10)),
            (Some("bytes=-3"), Range::Part(7, 10)),
            (Some("bytes=-99"), Range::Part(0, 10)),
            (Some("bytes=8-99"), Range::Part(8, 10)),
            (Some("bytes=0-18446744073709551615"), Range::Part(0, 10)),
            (Some("bytes=10-"), Range::Outside),
            (Some("bytes=-0"), Range::Outside),
            (Some("bytes=5-2"), Range::Whole),
            (Some("bytes=1-2,4-5"), Range::Whole),
            (Some("bytes=+1-2"), Range::Whole),
            (Some("lines=1-2"), Range::Whole),
            (Some("bytes=-"), Range::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(wanted_range(header, 10), expected, "{header:?}");
        }
        assert_eq!(wanted_range(Some("bytes=0-"), 0), Range::Outside);
    }
}
