-- The snapshot whose restore onto the workspace's machine broke off for good: what lies there is
-- neither that snapshot nor what was there before, and must not become the newest one unasked.
ALTER TABLE workspaces ADD COLUMN half_restored TEXT COLLATE "C";
