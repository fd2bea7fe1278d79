//! A database of its own per test, and things to put in it.

use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::spec::WorkspaceSpec;
use dumont_core::time::Timestamp;
use dumont_core::workflow::Kind;
use dumont_store::{
    InstanceRow, InstanceState, NewInstance, NewWorkflow, NewWorkspace, Store, WorkflowRow, WorkspaceRow,
    WorkspaceState,
};
use dumont_temp_postgres::Cluster;
use std::time::Duration;
use tempfile::TempDir;

pub const LEASE: Duration = Duration::from_secs(60);
/// Seconds, as [`at`] takes them.
pub const DAY: i64 = 86_400;

/// Where a test's database is; it goes with the fixture.
pub enum Fixture {
    Sqlite(TempDir),
    Postgres { _cluster: Cluster, url: String },
}

impl Fixture {
    pub fn sqlite() -> Self {
        Self::Sqlite(TempDir::new().unwrap())
    }

    pub fn postgres() -> Self {
        let cluster = Cluster::start().unwrap();
        let url = cluster.create_database("contract").unwrap();
        Self::Postgres {
            _cluster: cluster,
            url,
        }
    }

    /// The column `line` of what plain SQL answers, by another program's connection.
    pub async fn lines(&self, sql: &'static str) -> Vec<String> {
        match self {
            Self::Sqlite(dir) => {
                let options =
                    sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("dumont.db"));
                let mut conn = sqlx::ConnectOptions::connect(&options).await.unwrap();
                sqlx::query_scalar(sql).fetch_all(&mut conn).await.unwrap()
            }
            Self::Postgres { url, .. } => {
                let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(url)
                    .await
                    .unwrap();
                sqlx::query_scalar(sql).fetch_all(&mut conn).await.unwrap()
            }
        }
    }

    /// Where others connect to it; SQLite is a file.
    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres { url, .. } => Some(url),
        }
    }

    /// A new connection, as another process would make it.
    pub async fn open(&self) -> Store {
        match self {
            Self::Sqlite(dir) => Store::open(dir.path().join("dumont.db")).await.unwrap(),
            Self::Postgres { url, .. } => Store::connect(url).await.unwrap(),
        }
    }
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000)
}

pub fn machine(n: u32) -> MachineRef {
    MachineRef::new("vast", &n.to_string()).unwrap()
}

pub fn offer(n: u32) -> Offer {
    Offer {
        offer_id: format!("offer-{n}"),
        machine: machine(n),
        host_id: Some("host-1".into()),
        gpu_name: "RTX 4090".into(),
        gpu_count: 1,
        gpu_ram_mb: 24_576,
        price: 0.25,
        region: Some("PT".into()),
        provider_reliability: 0.99,
        inet_down_mbps: 800.0,
        inet_up_mbps: 800.0,
        cuda_max: Some(12.8),
        driver_version: None,
        disk_gb: 100.0,
        verified: true,
        datacenter: false,
        bid: None,
    }
}

pub fn spec(name: &str) -> WorkspaceSpec {
    serde_json::from_value(serde_json::json!({ "name": name })).unwrap()
}

pub async fn workspace(store: &Store, name: &str) -> WorkspaceRow {
    let new = NewWorkspace {
        key: None,
        id: format!("id-{name}"),
        spec: spec(name),
        state: WorkspaceState::Draft,
    };
    store.create_workspace(&new, at(1)).await.unwrap()
}

pub fn new_workflow(id: &str, kind: Kind, workspace: &WorkspaceRow) -> NewWorkflow {
    NewWorkflow {
        id: id.into(),
        kind,
        workspace_id: workspace.id.clone(),
        state: serde_json::json!({}),
        preempt: Vec::new(),
        preempt_error: None,
        expects_instance: None,
        effects: Vec::new(),
    }
}

pub async fn claimed(store: &Store, id: &str, kind: Kind, workspace: &WorkspaceRow) -> WorkflowRow {
    store
        .start_workflow(&new_workflow(id, kind, workspace), at(10))
        .await
        .unwrap();
    store.claim_workflow(id, "owner", LEASE).await.unwrap()
}

pub async fn intent(store: &Store, key: &str, workspace: &WorkspaceRow) -> InstanceRow {
    let new = NewInstance {
        key: key.into(),
        workspace_id: workspace.id.clone(),
        workflow: None,
        label: format!("dumont/c/{}/{key}", workspace.name),
        lease: None,
        offer: offer(7),
    };
    store.insert_intent(&new, at(20)).await.unwrap()
}

/// The workspace lives on a new instance; its fence of then.
pub async fn living_on(store: &Store, key: &str, workspace: &WorkspaceRow) -> i64 {
    intent(store, key, workspace).await;
    store.set_instance_rented(key, "90001", at(21)).await.unwrap();
    store
        .set_instance_state(key, InstanceState::Ready, at(22))
        .await
        .unwrap();
    let fence = store.workspace(&workspace.id).await.unwrap().unwrap().fence;
    store
        .attach_instance(&workspace.id, key, fence, at(23))
        .await
        .unwrap()
}
