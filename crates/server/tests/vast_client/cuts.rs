//! A create that is cut off at every instant, between this client and the emulated marketplace:
//! whatever the client says afterwards is what the market's own ledger says.

use crate::market::{Scene, scene_behind};
use dumont_server::providers::{ErrorClass, Provider};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What happens to the next create; everything else passes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    None,
    /// So many bytes of the request get through, and the connection ends.
    Request(usize),
    /// It is carried out, and so many bytes of the answer get through.
    Answer(usize),
    /// It is carried out twice, and the first answer gets through.
    Twice,
    /// It is carried out twice, and no answer gets through.
    TwiceCut,
}

/// One message: its head and its body of known length.
async fn message(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    loop {
        let begun = bytes.len();
        if stream.read_until(b'\n', &mut bytes).await.ok()? == 0 {
            return None;
        }
        let line = String::from_utf8_lossy(&bytes[begun..]).to_lowercase();
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let begun = bytes.len();
    bytes.resize(begun + length, 0);
    stream.read_exact(&mut bytes[begun..]).await.ok()?;
    Some(bytes)
}

async fn asked(market: &str, request: &[u8]) -> Option<Vec<u8>> {
    let mut up = BufReader::new(TcpStream::connect(market).await.ok()?);
    up.write_all(request).await.ok()?;
    message(&mut up).await
}

async fn carry(client: TcpStream, market: String, next: Arc<Mutex<Mishap>>) -> Option<()> {
    let mut client = BufReader::new(client);
    loop {
        let request = message(&mut client).await?;
        let create = request.starts_with(b"PUT /api/v0/asks/");
        let mishap = if create {
            std::mem::replace(&mut *next.lock().unwrap(), Mishap::None)
        } else {
            Mishap::None
        };
        if let Mishap::Request(n) = mishap {
            let mut up = TcpStream::connect(&market).await.ok()?;
            up.write_all(&request[..n.min(request.len() - 1)]).await.ok()?;
            return None;
        }
        let answer = asked(&market, &request).await?;
        match mishap {
            Mishap::Answer(n) => {
                client.write_all(&answer[..n.min(answer.len() - 1)]).await.ok()?;
                return None;
            }
            Mishap::Twice => drop(asked(&market, &request).await?),
            Mishap::TwiceCut => {
                asked(&market, &request).await?;
                return None;
            }
            _ => {}
        }
        client.write_all(&answer).await.ok()?;
    }
}

/// The market behind a line that can be cut.
async fn scene() -> (Scene, Arc<Mutex<Mishap>>) {
    let next = Arc::new(Mutex::new(Mishap::None));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let scene = scene_behind(&url).await;
    let (market, mishaps) = (scene.market.url().replace("http://", ""), next.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(carry(client, market.clone(), mishaps.clone()));
        }
    });
    (scene, next)
}

/// Rents with this mishap. What is said to be rented is, once; what is said not to be, is not.
async fn try_with(scene: &Scene, next: &Mutex<Mishap>, mishap: Mishap, n: usize) -> bool {
    *next.lock().unwrap() = mishap;
    let label = format!("dumont/c/w/cut-{n}");
    let rented = scene.rent(&label).await;
    let alive = scene.alive().await;
    match rented {
        Ok(id) => {
            assert_eq!(alive, 2, "{mishap:?}");
            let found = scene.client.find_by_label(&label).await.unwrap().unwrap();
            assert_eq!(found.instance_id, id, "{mishap:?}");
            scene.client.destroy(&id).await.unwrap();
            true
        }
        Err(error) => {
            assert_eq!(error.class, ErrorClass::Transient, "{mishap:?}: {error}");
            assert_eq!(alive, 1, "{mishap:?}: {error}");
            false
        }
    }
}

#[tokio::test]
async fn a_create_cut_at_any_instant_is_never_forgotten_nor_repeated() {
    let (scene, next) = scene().await;
    // Absence is only believed of an account that has something.
    scene.rent("dumont/c/other/1").await.unwrap();
    let mut n = 0;
    for at in (0..1_200).step_by(150) {
        n += 1;
        let rented = try_with(&scene, &next, Mishap::Request(at), n).await;
        assert!(!rented, "half a request rents nothing: {at}");
    }
    for at in (0..400).step_by(25) {
        n += 1;
        let rented = try_with(&scene, &next, Mishap::Answer(at), n).await;
        assert!(rented, "it was carried out: {at}");
    }
    for mishap in [Mishap::Twice, Mishap::TwiceCut] {
        n += 1;
        assert!(try_with(&scene, &next, mishap, n).await, "{mishap:?}");
    }
    assert_eq!(scene.alive().await, 1);
    scene.market.shutdown().await;
}
