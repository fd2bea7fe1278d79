-- Whose attempts these are, where they are not this server's own: without it, what another
-- server has rolled up could not be told from what it had sent one by one before.
ALTER TABLE machine_attempts ADD COLUMN source TEXT COLLATE "C";

ALTER TABLE machine_rollups ADD COLUMN source TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE machine_rollups DROP CONSTRAINT machine_rollups_pkey;
ALTER TABLE machine_rollups ADD PRIMARY KEY (provider, machine_id, day, verdict, reason, source);
