-- Keys of encrypted workspaces. A table of their own, so that no listing of workspaces reads them;
-- one is kept as long as there may be objects that it opens.
CREATE TABLE workspace_keys (
    workspace_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES workspaces (id),
    key          TEXT COLLATE "C" NOT NULL
);

-- What comparing the MD5 of model files found, some time after the failover.
ALTER TABLE failover_test_events ADD COLUMN model_files_json TEXT COLLATE "C";

-- From the loss to the last byte, where the workload did not wait for it.
ALTER TABLE failover_test_events ADD COLUMN complete_ms BIGINT;
