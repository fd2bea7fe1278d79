-- What an account may ask of a provider, shared by all replicas: a row per limited endpoint. Times
-- are microseconds of this database's clock; `first_*` is who waits for the next turn.
CREATE TABLE provider_gates (
    provider       TEXT COLLATE "C" NOT NULL,
    account        TEXT COLLATE "C" NOT NULL,
    endpoint       TEXT COLLATE "C" NOT NULL,
    next_at        BIGINT NOT NULL,
    stretch        DOUBLE PRECISION NOT NULL,
    refused_at     BIGINT NOT NULL,
    closed_until   BIGINT NOT NULL,
    taken_by       BIGINT NOT NULL,
    first_who      BIGINT NOT NULL,
    first_deadline BIGINT NOT NULL,
    first_until    BIGINT NOT NULL,
    asked_at       BIGINT NOT NULL,
    PRIMARY KEY (provider, account, endpoint)
);
