-- Keys of encrypted workspaces. A table of their own, so that no listing of workspaces reads them;
-- one is kept as long as there may be objects that it opens.
CREATE TABLE workspace_keys (
    workspace_id TEXT PRIMARY KEY NOT NULL REFERENCES workspaces (id),
    key          TEXT NOT NULL
);
