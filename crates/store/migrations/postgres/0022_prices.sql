-- What an instance costs changes: a bid is raised, and one that stands still costs its disk alone. The
-- price of now is in its own row; one whose price never changed has none here.
CREATE TABLE instance_prices (
    instance_key TEXT COLLATE "C" NOT NULL REFERENCES instances (key),
    since        BIGINT NOT NULL,
    -- Dollars per hour before and after.
    was          DOUBLE PRECISION NOT NULL,
    price        DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (instance_key, since)
);

-- When it was had back after its last loss: what tells one loss of it from the next.
ALTER TABLE instances ADD COLUMN back_at BIGINT;

-- What became of the machine that was lost: known later than what decided that it was.
ALTER TABLE failover_test_events ADD COLUMN cause TEXT COLLATE "C";
