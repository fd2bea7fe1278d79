-- Snapshots that retention never takes.
ALTER TABLE snapshots ADD COLUMN pinned BOOLEAN NOT NULL DEFAULT FALSE;
