//! What a run does behind dumont's back to objects in the bucket.

use dumont_server::objects::ObjectStore;
use dumont_server::objects::s3::{S3Config, S3Store};
use rusty_s3::S3Action;
use std::time::Duration;
use tokio::runtime::Handle;

/// Keys below a prefix, by way of no proxy.
pub fn objects(runtime: &Handle, config: &S3Config, prefix: &str) -> Result<Vec<String>, String> {
    let store = S3Store::new(config.clone(), None).map_err(|e| e.message)?;
    let listed = runtime.block_on(store.list(prefix)).map_err(|e| e.to_string())?;
    Ok(listed.into_iter().map(|o| o.key).collect())
}

/// An object is lost, cut short, or another byte lies in its middle.
pub fn harm(runtime: &Handle, config: &S3Config, key: &str, how: u32) -> Result<(), String> {
    let style = rusty_s3::UrlStyle::Path;
    let (endpoint, name) = (config.endpoint.clone(), config.bucket.clone());
    let bucket =
        rusty_s3::Bucket::new(endpoint, style, name, config.region.clone()).map_err(|e| e.to_string())?;
    let keys = rusty_s3::Credentials::new(&*config.key_id, &*config.secret);
    let life = Duration::from_secs(60);
    let http = reqwest::Client::new();
    runtime.block_on(async {
        let text = |e: reqwest::Error| e.to_string();
        if how == 0 {
            let url = bucket.delete_object(Some(&keys), key).sign(life);
            let gone = http.delete(url).send().await.map_err(text)?;
            return gone.error_for_status().map(drop).map_err(text);
        }
        let url = bucket.get_object(Some(&keys), key).sign(life);
        let got = http.get(url).send().await.map_err(text)?;
        let mut bytes = got
            .error_for_status()
            .map_err(text)?
            .bytes()
            .await
            .map_err(text)?
            .to_vec();
        let middle = bytes.len() / 2;
        match how {
            1 => bytes.truncate(middle),
            _ => bytes[middle] ^= 1,
        }
        let url = bucket.put_object(Some(&keys), key).sign(life);
        let put = http.put(url).body(bytes).send().await.map_err(text)?;
        put.error_for_status().map(drop).map_err(text)
    })
}
