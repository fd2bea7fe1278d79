-- Times are BIGINT microseconds since the epoch, also where the source document says
-- TIMESTAMP: SQLite has no timestamp type and PostgreSQL keeps microseconds, so an integer is
-- the one form that both store exactly and compare alike. JSON and words are TEXT for the
-- same reason. Columns marked (doc) are named by the source documents.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

CREATE TABLE tokens (
    id           TEXT PRIMARY KEY NOT NULL,
    name         TEXT NOT NULL,
    hash         BLOB NOT NULL,
    created_at   BIGINT NOT NULL,
    revoked_at   BIGINT,
    last_used_at BIGINT
);

CREATE TABLE workspaces (
    id           TEXT PRIMARY KEY NOT NULL,
    name         TEXT NOT NULL,
    spec_json    TEXT NOT NULL,
    state        TEXT NOT NULL,
    message      TEXT,
    instance_key TEXT,
    fence        BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    deleted_at   BIGINT
);
-- A deleted workspace gives its name free.
CREATE UNIQUE INDEX workspaces_name ON workspaces (name) WHERE deleted_at IS NULL;

CREATE TABLE workflows (
    id              TEXT PRIMARY KEY NOT NULL,
    kind            TEXT NOT NULL,
    workspace_id    TEXT NOT NULL REFERENCES workspaces (id),
    step            TEXT NOT NULL,
    step_started_at BIGINT NOT NULL,
    state_json      TEXT NOT NULL,
    status          TEXT NOT NULL,
    owner           TEXT,
    lease_until     BIGINT,
    fence           BIGINT NOT NULL,
    steps_json      TEXT NOT NULL,
    log_json        TEXT NOT NULL,
    progress_json   TEXT,
    error_json      TEXT,
    result_json     TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    finished_at     BIGINT
);
CREATE UNIQUE INDEX workflows_one_running ON workflows (workspace_id) WHERE status = 'running';
CREATE INDEX workflows_running ON workflows (created_at, id) WHERE status = 'running';
CREATE INDEX workflows_workspace ON workflows (workspace_id, id);

CREATE TABLE instances (
    key              TEXT PRIMARY KEY NOT NULL,
    workspace_id     TEXT NOT NULL REFERENCES workspaces (id),
    workflow_id      TEXT,
    provider         TEXT NOT NULL,
    label            TEXT NOT NULL UNIQUE,
    offer_json       TEXT NOT NULL,
    machine_id       TEXT NOT NULL,
    host_id          TEXT,
    state            TEXT NOT NULL,
    instance_id      TEXT,
    host_key         TEXT,
    ssh_host         TEXT,
    ssh_port         BIGINT,
    last_snapshot_id TEXT,
    price            DOUBLE PRECISION NOT NULL,
    created_at       BIGINT NOT NULL,
    rented_at        BIGINT,
    ready_at         BIGINT,
    destroyed_at     BIGINT,
    updated_at       BIGINT NOT NULL
);
CREATE INDEX instances_workspace ON instances (workspace_id, key);
CREATE INDEX instances_open ON instances (key) WHERE state <> 'destroyed';

CREATE TABLE snapshots (
    id               TEXT PRIMARY KEY NOT NULL,
    workspace_id     TEXT NOT NULL REFERENCES workspaces (id),
    instance_key     TEXT,
    snapshot_type    TEXT NOT NULL,
    base_snapshot_id TEXT,
    parent_id        TEXT,
    root             TEXT NOT NULL,
    head_json        TEXT NOT NULL,
    packs_json       TEXT NOT NULL,
    metadata_key     TEXT,
    files_total      BIGINT NOT NULL,
    files_changed    BIGINT NOT NULL,
    total_bytes      BIGINT NOT NULL,
    uploaded_bytes   BIGINT NOT NULL,
    full_because     TEXT,
    torn_json        TEXT NOT NULL,
    state            TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    committed_at     BIGINT,
    elapsed_ms       BIGINT NOT NULL
);
CREATE INDEX snapshots_workspace ON snapshots (workspace_id, state, created_at, id);

-- (doc) machine_attempts. `success` is NULL where the attempt does not count, so that
-- AVG(success) in plain SQL agrees with success_rate.
CREATE TABLE machine_attempts (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    provider         TEXT NOT NULL,
    machine_id       TEXT NOT NULL,
    attempt_type     TEXT NOT NULL,
    success          BOOLEAN,
    error_message    TEXT,
    duration_seconds DOUBLE PRECISION NOT NULL,
    created_at       BIGINT NOT NULL,
    -- ours
    attempt_key      TEXT NOT NULL UNIQUE,
    workflow_id      TEXT,
    workspace_id     TEXT,
    host_id          TEXT,
    offer_id         TEXT,
    instance_id      TEXT,
    gpu_name         TEXT NOT NULL,
    price            DOUBLE PRECISION NOT NULL,
    region           TEXT,
    image            TEXT,
    stage            TEXT NOT NULL,
    outcome          TEXT NOT NULL,
    reason           TEXT,
    ready_seconds    DOUBLE PRECISION
);
CREATE INDEX machine_attempts_machine ON machine_attempts (provider, machine_id, id);
CREATE INDEX machine_attempts_workflow ON machine_attempts (workflow_id, id);

-- (doc) machine_stats
CREATE TABLE machine_stats (
    id                   INTEGER PRIMARY KEY AUTOINCREMENT,
    provider             TEXT NOT NULL,
    machine_id           TEXT NOT NULL,
    total_attempts       BIGINT NOT NULL,
    successful_attempts  BIGINT NOT NULL,
    failed_attempts      BIGINT NOT NULL,
    success_rate         DOUBLE PRECISION,
    avg_boot_time        DOUBLE PRECISION,
    last_attempt_at      BIGINT,
    last_success_at      BIGINT,
    last_failure_at      BIGINT,
    reliability_score    DOUBLE PRECISION NOT NULL,
    -- ours
    uncounted_attempts   BIGINT NOT NULL,
    consecutive_failures BIGINT NOT NULL,
    ready_attempts       BIGINT NOT NULL,
    ready_total_ms       BIGINT NOT NULL,
    UNIQUE (provider, machine_id)
);

-- (doc) machine_blacklist. `is_active` says that nobody closed the entry; it blocks only
-- until `expires_at` as well.
CREATE TABLE machine_blacklist (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    provider        TEXT NOT NULL,
    machine_id      TEXT NOT NULL,
    blacklist_type  TEXT NOT NULL,
    reason          TEXT NOT NULL,
    total_attempts  BIGINT NOT NULL,
    failed_attempts BIGINT NOT NULL,
    failure_rate    DOUBLE PRECISION,
    blacklisted_at  BIGINT NOT NULL,
    expires_at      BIGINT,
    is_active       BOOLEAN NOT NULL,
    -- ours
    rule            TEXT,
    actor           TEXT,
    scope           TEXT,
    closed_at       BIGINT,
    closed_by       TEXT
);
CREATE UNIQUE INDEX machine_blacklist_one_active
    ON machine_blacklist (provider, machine_id, COALESCE(scope, '')) WHERE is_active;

-- (doc) failover_test_events: the six fields of the plan's 3.4 and every phase.
CREATE TABLE failover_test_events (
    id                       TEXT PRIMARY KEY NOT NULL,
    workflow_id              TEXT NOT NULL,
    workspace_id             TEXT NOT NULL,
    workspace_name           TEXT NOT NULL,
    success                  BOOLEAN NOT NULL,
    failure_reason           TEXT,
    trigger_name             TEXT NOT NULL,
    lost_at                  BIGINT NOT NULL,
    detected_at              BIGINT NOT NULL,
    finished_at              BIGINT NOT NULL,
    detection_ms             BIGINT NOT NULL,
    search_ms                BIGINT NOT NULL,
    gpu_provisioning_time_ms BIGINT NOT NULL,
    restore_ms               BIGINT NOT NULL,
    validation_ms            BIGINT NOT NULL,
    start_ms                 BIGINT NOT NULL,
    probe_ms                 BIGINT NOT NULL,
    switch_ms                BIGINT NOT NULL,
    total_ms                 BIGINT NOT NULL,
    original_instance_id     TEXT,
    original_ssh_host        TEXT,
    original_ssh_port        BIGINT,
    new_instance_id          TEXT,
    new_ssh_host             TEXT,
    new_ssh_port             BIGINT,
    snapshot_id              TEXT,
    snapshot_type            TEXT,
    base_snapshot_id         TEXT,
    files_changed            BIGINT,
    validation_json          TEXT,
    bytes_restored           BIGINT NOT NULL,
    bytes_downloaded         BIGINT NOT NULL,
    data_loss_ms             BIGINT
);
CREATE INDEX failover_test_events_workspace ON failover_test_events (workspace_id, id);
