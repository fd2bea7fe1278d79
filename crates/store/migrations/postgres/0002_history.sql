-- The machine history in full: what the score, the rules' watermark, reports, interrupts and
-- retention need.

-- What stood around an attempt. `score_s` and `score_f` are what it adds to the sums of its
-- machine, operator and bucket: fixed when it ends, so that a recount gives the same sums.
ALTER TABLE machine_attempts ADD COLUMN image_digest TEXT COLLATE "C";
ALTER TABLE machine_attempts ADD COLUMN reporter TEXT COLLATE "C";
ALTER TABLE machine_attempts ADD COLUMN cuda TEXT COLLATE "C";
ALTER TABLE machine_attempts ADD COLUMN provider_reliability DOUBLE PRECISION;
ALTER TABLE machine_attempts ADD COLUMN inet_down_mbps DOUBLE PRECISION;
ALTER TABLE machine_attempts ADD COLUMN warm BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE machine_attempts ADD COLUMN suspect BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE machine_attempts ADD COLUMN score DOUBLE PRECISION;
ALTER TABLE machine_attempts ADD COLUMN prior_mean DOUBLE PRECISION;
ALTER TABLE machine_attempts ADD COLUMN score_s DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE machine_attempts ADD COLUMN score_f DOUBLE PRECISION NOT NULL DEFAULT 0;
UPDATE machine_attempts SET score_s = CASE WHEN success THEN 1 ELSE 0 END,
    score_f = CASE WHEN success THEN 0 ELSE 1 END WHERE success IS NOT NULL;

-- Lists are in the order of time, which reports and imports bring along.
DROP INDEX machine_attempts_machine;
CREATE INDEX machine_attempts_machine ON machine_attempts (provider, machine_id, created_at, id);
CREATE INDEX machine_attempts_created ON machine_attempts (created_at, id);
CREATE INDEX machine_attempts_failed ON machine_attempts (created_at, reason, provider) WHERE success = FALSE;

-- `sum_s`, `sum_f`: the machine's decayed counts as of `sums_at`. `window_*`: what the rules
-- judge, counted since the last block ended. `blocked_until`: the end of the unscoped entry in
-- force, so that an attempt need not ask for it.
ALTER TABLE machine_stats ADD COLUMN sum_s DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE machine_stats ADD COLUMN sum_f DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE machine_stats ADD COLUMN sums_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE machine_stats ADD COLUMN prior_mean DOUBLE PRECISION;
ALTER TABLE machine_stats ADD COLUMN host_id TEXT COLLATE "C";
ALTER TABLE machine_stats ADD COLUMN bucket TEXT COLLATE "C";
ALTER TABLE machine_stats ADD COLUMN window_since BIGINT;
ALTER TABLE machine_stats ADD COLUMN window_successful BIGINT NOT NULL DEFAULT 0;
ALTER TABLE machine_stats ADD COLUMN window_failed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE machine_stats ADD COLUMN window_consecutive BIGINT NOT NULL DEFAULT 0;
ALTER TABLE machine_stats ADD COLUMN blocked_until BIGINT;
UPDATE machine_stats SET sum_s = successful_attempts, sum_f = failed_attempts,
    sums_at = COALESCE(last_attempt_at, 0), window_successful = successful_attempts,
    window_failed = failed_attempts, window_consecutive = consecutive_failures,
    blocked_until = (SELECT MIN(b.expires_at) FROM machine_blacklist b
        WHERE b.provider = machine_stats.provider AND b.machine_id = machine_stats.machine_id
        AND b.is_active AND b.scope IS NULL);

-- Decayed counts of an operator or a bucket: per epoch of 140 days, each attempt weighted as of
-- the epoch's begin, so that adding one is a plain addition that needs no reading and no lock
-- beyond its own. Buckets are four rows for everybody, so each is spread over shards.
CREATE TABLE reliability_sums (
    provider TEXT COLLATE "C" NOT NULL,
    kind     TEXT COLLATE "C" NOT NULL,
    name     TEXT COLLATE "C" NOT NULL,
    epoch    BIGINT NOT NULL,
    shard    BIGINT NOT NULL,
    s        DOUBLE PRECISION NOT NULL,
    f        DOUBLE PRECISION NOT NULL,
    as_of    BIGINT NOT NULL,
    PRIMARY KEY (provider, kind, name, epoch, shard)
);

-- Losses after ready; whether one counts is its cause's to say.
CREATE TABLE machine_interrupts (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider      TEXT COLLATE "C" NOT NULL,
    machine_id    TEXT COLLATE "C" NOT NULL,
    interrupt_key TEXT COLLATE "C" NOT NULL UNIQUE,
    cause         TEXT COLLATE "C" NOT NULL,
    trigger_name  TEXT COLLATE "C" NOT NULL,
    workspace_id  TEXT COLLATE "C",
    lived_seconds DOUBLE PRECISION,
    suspect       BOOLEAN NOT NULL,
    created_at    BIGINT NOT NULL
);
CREATE INDEX machine_interrupts_machine ON machine_interrupts (provider, machine_id, created_at);

-- Attempts past the retention, per machine, day, verdict and reason.
CREATE TABLE machine_rollups (
    provider       TEXT COLLATE "C" NOT NULL,
    machine_id     TEXT COLLATE "C" NOT NULL,
    day            BIGINT NOT NULL,
    verdict        TEXT COLLATE "C" NOT NULL,
    reason         TEXT COLLATE "C" NOT NULL,
    attempts       BIGINT NOT NULL,
    ready_attempts BIGINT NOT NULL,
    ready_total_ms BIGINT NOT NULL,
    last_at        BIGINT NOT NULL,
    PRIMARY KEY (provider, machine_id, day, verdict, reason)
);
CREATE INDEX machine_rollups_day ON machine_rollups (day);

-- Room in each page for the next version of a row: these are updated at every attempt, and no
-- index has to follow.
ALTER TABLE machine_stats SET (fillfactor = 80);
ALTER TABLE reliability_sums SET (fillfactor = 50);
