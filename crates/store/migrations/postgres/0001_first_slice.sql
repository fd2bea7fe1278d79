-- The tables of ../sqlite/0001_first_slice.sql, which explains them, for PostgreSQL.
--
-- Every text collates by bytes, as SQLite's do (a test looks): the order of a page must not
-- depend on the locale that somebody created the database with, and texts of two collations
-- cannot even be compared.

CREATE TABLE meta (
    key   TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    value TEXT COLLATE "C" NOT NULL
);

CREATE TABLE tokens (
    id           TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    hash         BYTEA NOT NULL,
    created_at   BIGINT NOT NULL,
    revoked_at   BIGINT,
    last_used_at BIGINT
);

CREATE TABLE workspaces (
    id           TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    spec_json    TEXT COLLATE "C" NOT NULL,
    state        TEXT COLLATE "C" NOT NULL,
    message      TEXT COLLATE "C",
    instance_key TEXT COLLATE "C",
    fence        BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    deleted_at   BIGINT
);
-- A deleted workspace gives its name free.
CREATE UNIQUE INDEX workspaces_name ON workspaces (name) WHERE deleted_at IS NULL;

CREATE TABLE workflows (
    id              TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    kind            TEXT COLLATE "C" NOT NULL,
    workspace_id    TEXT COLLATE "C" NOT NULL REFERENCES workspaces (id),
    step            TEXT COLLATE "C" NOT NULL,
    step_started_at BIGINT NOT NULL,
    state_json      TEXT COLLATE "C" NOT NULL,
    status          TEXT COLLATE "C" NOT NULL,
    owner           TEXT COLLATE "C",
    lease_until     BIGINT,
    fence           BIGINT NOT NULL,
    steps_json      TEXT COLLATE "C" NOT NULL,
    log_json        TEXT COLLATE "C" NOT NULL,
    progress_json   TEXT COLLATE "C",
    error_json      TEXT COLLATE "C",
    result_json     TEXT COLLATE "C",
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    finished_at     BIGINT
);
CREATE UNIQUE INDEX workflows_one_running ON workflows (workspace_id) WHERE status = 'running';
CREATE INDEX workflows_running ON workflows (created_at, id) WHERE status = 'running';
CREATE INDEX workflows_workspace ON workflows (workspace_id, id);

CREATE TABLE instances (
    key              TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    workspace_id     TEXT COLLATE "C" NOT NULL REFERENCES workspaces (id),
    workflow_id      TEXT COLLATE "C",
    provider         TEXT COLLATE "C" NOT NULL,
    label            TEXT COLLATE "C" NOT NULL UNIQUE,
    offer_json       TEXT COLLATE "C" NOT NULL,
    machine_id       TEXT COLLATE "C" NOT NULL,
    host_id          TEXT COLLATE "C",
    state            TEXT COLLATE "C" NOT NULL,
    instance_id      TEXT COLLATE "C",
    host_key         TEXT COLLATE "C",
    ssh_host         TEXT COLLATE "C",
    ssh_port         BIGINT,
    last_snapshot_id TEXT COLLATE "C",
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
    id               TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    workspace_id     TEXT COLLATE "C" NOT NULL REFERENCES workspaces (id),
    instance_key     TEXT COLLATE "C",
    snapshot_type    TEXT COLLATE "C" NOT NULL,
    base_snapshot_id TEXT COLLATE "C",
    parent_id        TEXT COLLATE "C",
    root             TEXT COLLATE "C" NOT NULL,
    head_json        TEXT COLLATE "C" NOT NULL,
    packs_json       TEXT COLLATE "C" NOT NULL,
    metadata_key     TEXT COLLATE "C",
    files_total      BIGINT NOT NULL,
    files_changed    BIGINT NOT NULL,
    total_bytes      BIGINT NOT NULL,
    uploaded_bytes   BIGINT NOT NULL,
    full_because     TEXT COLLATE "C",
    torn_json        TEXT COLLATE "C" NOT NULL,
    state            TEXT COLLATE "C" NOT NULL,
    created_at       BIGINT NOT NULL,
    committed_at     BIGINT,
    elapsed_ms       BIGINT NOT NULL
);
CREATE INDEX snapshots_workspace ON snapshots (workspace_id, state, created_at, id);

-- (doc) machine_attempts. `success` is NULL where the attempt does not count, so that
-- AVG(success) in plain SQL agrees with success_rate.
CREATE TABLE machine_attempts (
    id               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider         TEXT COLLATE "C" NOT NULL,
    machine_id       TEXT COLLATE "C" NOT NULL,
    attempt_type     TEXT COLLATE "C" NOT NULL,
    success          BOOLEAN,
    error_message    TEXT COLLATE "C",
    duration_seconds DOUBLE PRECISION NOT NULL,
    created_at       BIGINT NOT NULL,
    -- ours
    attempt_key      TEXT COLLATE "C" NOT NULL UNIQUE,
    workflow_id      TEXT COLLATE "C",
    workspace_id     TEXT COLLATE "C",
    host_id          TEXT COLLATE "C",
    offer_id         TEXT COLLATE "C",
    instance_id      TEXT COLLATE "C",
    gpu_name         TEXT COLLATE "C" NOT NULL,
    price            DOUBLE PRECISION NOT NULL,
    region           TEXT COLLATE "C",
    image            TEXT COLLATE "C",
    stage            TEXT COLLATE "C" NOT NULL,
    outcome          TEXT COLLATE "C" NOT NULL,
    reason           TEXT COLLATE "C",
    ready_seconds    DOUBLE PRECISION
);
CREATE INDEX machine_attempts_machine ON machine_attempts (provider, machine_id, id);
CREATE INDEX machine_attempts_workflow ON machine_attempts (workflow_id, id);

-- (doc) machine_stats
CREATE TABLE machine_stats (
    id                   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider             TEXT COLLATE "C" NOT NULL,
    machine_id           TEXT COLLATE "C" NOT NULL,
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
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider        TEXT COLLATE "C" NOT NULL,
    machine_id      TEXT COLLATE "C" NOT NULL,
    blacklist_type  TEXT COLLATE "C" NOT NULL,
    reason          TEXT COLLATE "C" NOT NULL,
    total_attempts  BIGINT NOT NULL,
    failed_attempts BIGINT NOT NULL,
    failure_rate    DOUBLE PRECISION,
    blacklisted_at  BIGINT NOT NULL,
    expires_at      BIGINT,
    is_active       BOOLEAN NOT NULL,
    -- ours
    rule            TEXT COLLATE "C",
    actor           TEXT COLLATE "C",
    scope           TEXT COLLATE "C",
    closed_at       BIGINT,
    closed_by       TEXT COLLATE "C"
);
CREATE UNIQUE INDEX machine_blacklist_one_active
    ON machine_blacklist (provider, machine_id, COALESCE(scope, '')) WHERE is_active;

-- (doc) failover_test_events: the six fields of the plan's 3.4 and every phase.
CREATE TABLE failover_test_events (
    id                       TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    workflow_id              TEXT COLLATE "C" NOT NULL,
    workspace_id             TEXT COLLATE "C" NOT NULL,
    workspace_name           TEXT COLLATE "C" NOT NULL,
    success                  BOOLEAN NOT NULL,
    failure_reason           TEXT COLLATE "C",
    trigger_name             TEXT COLLATE "C" NOT NULL,
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
    original_instance_id     TEXT COLLATE "C",
    original_ssh_host        TEXT COLLATE "C",
    original_ssh_port        BIGINT,
    new_instance_id          TEXT COLLATE "C",
    new_ssh_host             TEXT COLLATE "C",
    new_ssh_port             BIGINT,
    snapshot_id              TEXT COLLATE "C",
    snapshot_type            TEXT COLLATE "C",
    base_snapshot_id         TEXT COLLATE "C",
    files_changed            BIGINT,
    validation_json          TEXT COLLATE "C",
    bytes_restored           BIGINT NOT NULL,
    bytes_downloaded         BIGINT NOT NULL,
    data_loss_ms             BIGINT
);
CREATE INDEX failover_test_events_workspace ON failover_test_events (workspace_id, id);
