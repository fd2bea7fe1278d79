-- How long an instance goes on without a controller before it stops itself, and when it was last
-- heard of. Without the first it goes on for ever.
ALTER TABLE instances ADD COLUMN lease_ms BIGINT;
ALTER TABLE instances ADD COLUMN heard_at BIGINT;
