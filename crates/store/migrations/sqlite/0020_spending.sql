-- What a month has cost is summed over the instances that were alive in it.
CREATE INDEX instances_ended ON instances (destroyed_at) WHERE destroyed_at IS NOT NULL;
