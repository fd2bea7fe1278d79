-- Whose attempts these are, where they are not this server's own: without it, what another
-- server has rolled up could not be told from what it had sent one by one before.
ALTER TABLE machine_attempts ADD COLUMN source TEXT;

CREATE TABLE machine_rollups_new (
    provider       TEXT NOT NULL,
    machine_id     TEXT NOT NULL,
    day            BIGINT NOT NULL,
    verdict        TEXT NOT NULL,
    reason         TEXT NOT NULL,
    attempts       BIGINT NOT NULL,
    ready_attempts BIGINT NOT NULL,
    ready_total_ms BIGINT NOT NULL,
    last_at        BIGINT NOT NULL,
    source         TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (provider, machine_id, day, verdict, reason, source)
);
INSERT INTO machine_rollups_new (provider, machine_id, day, verdict, reason, attempts, ready_attempts,
    ready_total_ms, last_at)
    SELECT provider, machine_id, day, verdict, reason, attempts, ready_attempts, ready_total_ms, last_at
    FROM machine_rollups;
DROP TABLE machine_rollups;
ALTER TABLE machine_rollups_new RENAME TO machine_rollups;
CREATE INDEX machine_rollups_day ON machine_rollups (day);
