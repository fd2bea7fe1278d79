//! One provider and the world behind it.

use super::sshd::Sshd;
use dumont_core::budget::Limits;
use dumont_core::own_machine::OwnMachine;
use dumont_market::{Isolation, Market, MarketConfig};
use dumont_server::providers::own::OwnMachines;
use dumont_server::providers::vast::{ApiKey, Vast, VastConfig};
use dumont_server::providers::{OfferQuery, Provider, RentRequest};
use dumont_server::ssh;
use dumont_store::Store;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// How many may be rented at once where the test says so.
pub const PLACES: u32 = 4;

pub struct Bench {
    /// As a controller has it that began just now.
    pub fresh: Box<dyn Fn() -> Arc<dyn Provider> + Send + Sync>,
    /// The same with a key that nobody lets in.
    pub stranger: Arc<dyn Provider>,
    /// Our own public key.
    pub key: String,
    world: World,
    _dir: TempDir,
}

enum World {
    Market(Option<Market>),
    Own(Sshd),
}

impl Bench {
    pub async fn vast() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = MarketConfig::new(dir.path());
        config.time_scale = 0.0;
        config.machines = 20;
        config.isolation = Isolation::Directory;
        config.api_keys = vec!["contract-key".into()];
        let market = dumont_market::start(config).await.unwrap();
        let url = market.url();
        let client = move |key: &str| -> Arc<dyn Provider> {
            let mut config = VastConfig::new(&url, ApiKey::new(key).unwrap()).unwrap();
            config.stagger = Duration::ZERO;
            config.limits = Limits::off();
            config.lookup_waits = [0, 50, 100].map(Duration::from_millis).to_vec();
            Arc::new(Vast::new(config).unwrap())
        };
        let (key, _) = key(&dir, "ours");
        Self {
            stranger: client("invalid"),
            fresh: Box::new(move || client("contract-key")),
            key,
            world: World::Market(Some(market)),
            _dir: dir,
        }
    }

    pub async fn ssh() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sshd = Sshd::new();
        let store = Store::open(dir.path().join("dumont.db")).await.unwrap();
        let ((ours, ours_key), (theirs, theirs_key)) = (key(&dir, "ours"), key(&dir, "theirs"));
        sshd.let_in(&ours);
        let machine = machine("gpu1", &sshd);
        store
            .put_own_machine(&machine, dumont_core::time::Timestamp(1))
            .await
            .unwrap();
        let stranger = OwnMachines::new(store.clone(), theirs_key, theirs, None);
        let line = ours.clone();
        Self {
            fresh: Box::new(move || {
                Arc::new(OwnMachines::new(
                    store.clone(),
                    ours_key.clone(),
                    line.clone(),
                    None,
                ))
            }),
            stranger: Arc::new(stranger),
            key: ours,
            world: World::Own(sshd),
            _dir: dir,
        }
    }

    pub fn provider(&self) -> Arc<dyn Provider> {
        (self.fresh)()
    }

    pub fn sshd(&self) -> Option<&Sshd> {
        match &self.world {
            World::Own(sshd) => Some(sshd),
            World::Market(_) => None,
        }
    }

    pub async fn request(&self, label: &str) -> RentRequest {
        let offers = self.provider().search(&query()).await.unwrap();
        RentRequest {
            offer: offers.into_iter().next().expect("an offer"),
            label: label.into(),
            image: "pytorch/pytorch:latest".into(),
            disk_gb: 20,
            env: BTreeMap::new(),
            ports: vec![8000],
            onstart: String::new(),
            bid: None,
            lease: None,
            withdrawn: Default::default(),
        }
    }

    pub async fn rent(&self, label: &str) -> String {
        let request = self.request(label).await;
        self.provider().rent(&request).await.unwrap()
    }

    /// The next rent is carried out, and its reply lost. A row in our own database has no reply.
    pub async fn lose_the_next_reply(&self) {
        if let World::Market(Some(market)) = &self.world {
            let url = format!("{}/admin/faults", market.admin_url());
            let armed = json!({ "fault": "create_uncertain" });
            let answer = reqwest::Client::new().post(url).json(&armed).send().await;
            assert!(answer.unwrap().status().is_success());
        }
    }

    /// Nothing of the provider's answers any more.
    pub async fn silence(&mut self) {
        match &mut self.world {
            World::Own(sshd) => sshd.stop(),
            World::Market(market) => market.take().expect("it runs").shutdown().await,
        }
    }
}

pub fn query() -> OfferQuery {
    OfferQuery {
        gpu_count: 1,
        disk_gb: 20,
        ..Default::default()
    }
}

pub fn machine(name: &str, sshd: &Sshd) -> OwnMachine {
    let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
    let about = json!({
        "machine": format!("ssh:{name}"), "host": "127.0.0.1", "port": sshd.port, "user": user,
        "gpu": "RTX 4090", "gpu_ram_gb": 24.0, "workspaces": PLACES,
    });
    serde_json::from_value(about).unwrap()
}

pub fn key(dir: &TempDir, name: &str) -> (String, Arc<russh::keys::PrivateKey>) {
    let key = ssh::load_or_create(&dir.path().join(name)).unwrap();
    (ssh::public_line(key.public_key()).unwrap(), Arc::new(key))
}
