-- When a row was written that servers remember of machines and operators: the number of the
-- transaction (store/src/memory.rs says what a reader makes of it). A trigger sets it, so that no
-- statement can forget to: not a later one, not one typed by hand, not one of a server of an older
-- version that still runs beside this one.
--
-- Buckets are read whole each time and have none: with an index to follow, their few rows, which
-- nearly every attempt updates, could not be written in place.
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed := CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT);
    RETURN NEW;
END
$$;

ALTER TABLE machine_stats ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX machine_stats_changed ON machine_stats (changed);
CREATE TRIGGER machine_stats_stamp BEFORE INSERT OR UPDATE ON machine_stats
    FOR EACH ROW EXECUTE FUNCTION stamp();

ALTER TABLE machine_blacklist ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX machine_blacklist_changed ON machine_blacklist (changed);
CREATE TRIGGER machine_blacklist_stamp BEFORE INSERT OR UPDATE ON machine_blacklist
    FOR EACH ROW EXECUTE FUNCTION stamp();

ALTER TABLE reliability_sums ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX reliability_sums_changed ON reliability_sums (changed);
CREATE TRIGGER reliability_sums_stamp BEFORE INSERT OR UPDATE ON reliability_sums
    FOR EACH ROW WHEN (NEW.kind = 'operator') EXECUTE FUNCTION stamp();
