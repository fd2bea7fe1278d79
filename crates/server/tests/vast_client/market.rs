//! The same client against the emulated marketplace.

use dumont_core::budget::Limits;
use dumont_market::{Isolation, Market, MarketConfig};
use dumont_server::providers::vast::{ApiKey, Vast, VastConfig};
use dumont_server::providers::{ErrorClass, InstanceStatus, OfferQuery, Provider, RentRequest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

pub struct Scene {
    pub market: Market,
    pub client: Vast,
    _dir: tempfile::TempDir,
}

async fn scene() -> Scene {
    scene_at(None).await
}

/// With a client that finds the market at this address.
pub async fn scene_behind(url: &str) -> Scene {
    scene_at(Some(url)).await
}

async fn scene_at(url: Option<&str>) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let mut config = MarketConfig::new(dir.path());
    config.time_scale = 0.0;
    config.machines = 20;
    config.isolation = Isolation::Directory;
    let market = dumont_market::start(config).await.unwrap();
    let key = ApiKey::new("market-test-key").unwrap();
    let mut config = VastConfig::new(url.unwrap_or(&market.url()), key).unwrap();
    config.stagger = Duration::ZERO;
    config.limits = Limits::off();
    config.lookup_waits = [0, 50, 100].map(Duration::from_millis).to_vec();
    Scene {
        client: Vast::new(config).unwrap(),
        market,
        _dir: dir,
    }
}

impl Scene {
    pub async fn rent(&self, label: &str) -> Result<String, dumont_server::providers::ProviderError> {
        let query = OfferQuery {
            gpu_count: 1,
            disk_gb: 20,
            ..Default::default()
        };
        let offers = self.client.search(&query).await.unwrap();
        let offer = offers.into_iter().next().expect("the market has offers");
        let request = RentRequest {
            offer,
            label: label.into(),
            image: "pytorch/pytorch:latest".into(),
            disk_gb: 20,
            env: BTreeMap::new(),
            ports: vec![8000],
            onstart: String::new(),
            bid: None,
            lease: None,
            withdrawn: Default::default(),
        };
        self.client.rent(&request).await
    }

    async fn arm(&self, fault: &str) {
        let url = format!("{}/admin/faults", self.market.admin_url());
        let answer = reqwest::Client::new()
            .post(url)
            .json(&json!({ "fault": fault }))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    pub async fn alive(&self) -> Value {
        let url = format!("{}/admin/ledger", self.market.admin_url());
        let ledger: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        ledger["alive"].clone()
    }
}

#[tokio::test]
async fn searches_rents_lists_reads_and_destroys() {
    let scene = scene().await;
    let client = &scene.client;
    client
        .register_key("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDummyDummyDummyDummyDummyDummyDummyDummyDumm t")
        .await
        .unwrap();
    let id = scene.rent("dumont/c/w/1").await.unwrap();
    let found = client.find_by_label("dumont/c/w/1").await.unwrap().unwrap();
    assert_eq!(found.instance_id, id);
    let mut status = found.status;
    for _ in 0..100 {
        status = client.get(&id).await.unwrap().unwrap().status;
        if status == InstanceStatus::Running {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status, InstanceStatus::Running);
    let ready = client.get(&id).await.unwrap().unwrap();
    assert!(!ready.ssh.is_empty() && ready.price > 0.0, "{ready:?}");
    client.destroy(&id).await.unwrap();
    client.destroy(&id).await.unwrap();
    assert_eq!(client.get(&id).await.unwrap(), None);
    assert_eq!(scene.alive().await, 0);
    scene.market.shutdown().await;
}

#[tokio::test]
async fn a_create_whose_reply_is_lost_is_found_and_not_repeated() {
    let scene = scene().await;
    scene.arm("create_uncertain").await;
    let id = scene.rent("dumont/c/w/1").await.unwrap();
    assert_eq!(
        scene
            .client
            .find_by_label("dumont/c/w/1")
            .await
            .unwrap()
            .unwrap()
            .instance_id,
        id
    );
    assert_eq!(scene.alive().await, 1);
    scene.client.destroy(&id).await.unwrap();
    assert_eq!(scene.alive().await, 0);
    scene.market.shutdown().await;
}

#[tokio::test]
async fn an_offer_that_is_gone_is_told_apart() {
    let scene = scene().await;
    scene.arm("create_refused").await;
    assert_eq!(
        scene.rent("dumont/c/w/1").await.unwrap_err().class,
        ErrorClass::OfferGone
    );
    assert_eq!(scene.alive().await, 0);
    scene.market.shutdown().await;
}
