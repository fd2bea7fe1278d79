-- When a row was written that servers remember of machines and operators: a number that rises with
-- every write (store/src/memory.rs says what a reader makes of it). A trigger sets it, so that no
-- statement can forget to. Buckets are read whole each time and have none.

ALTER TABLE machine_stats ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX machine_stats_changed ON machine_stats (changed);

ALTER TABLE machine_blacklist ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX machine_blacklist_changed ON machine_blacklist (changed);

ALTER TABLE reliability_sums ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX reliability_sums_changed ON reliability_sums (changed);

CREATE VIEW stamps AS SELECT 1 + MAX(
    (SELECT COALESCE(MAX(changed), 0) FROM machine_stats),
    (SELECT COALESCE(MAX(changed), 0) FROM machine_blacklist),
    (SELECT COALESCE(MAX(changed), 0) FROM reliability_sums)) AS next;

CREATE TRIGGER machine_stats_stamp_new AFTER INSERT ON machine_stats WHEN NEW.changed = 0 BEGIN
    UPDATE machine_stats SET changed = (SELECT next FROM stamps) WHERE rowid = NEW.rowid;
END;
CREATE TRIGGER machine_stats_stamp AFTER UPDATE ON machine_stats WHEN NEW.changed = OLD.changed BEGIN
    UPDATE machine_stats SET changed = (SELECT next FROM stamps) WHERE rowid = NEW.rowid;
END;

CREATE TRIGGER machine_blacklist_stamp_new AFTER INSERT ON machine_blacklist WHEN NEW.changed = 0 BEGIN
    UPDATE machine_blacklist SET changed = (SELECT next FROM stamps) WHERE rowid = NEW.rowid;
END;
CREATE TRIGGER machine_blacklist_stamp AFTER UPDATE ON machine_blacklist WHEN NEW.changed = OLD.changed BEGIN
    UPDATE machine_blacklist SET changed = (SELECT next FROM stamps) WHERE rowid = NEW.rowid;
END;

CREATE TRIGGER reliability_sums_stamp_new AFTER INSERT ON reliability_sums WHEN NEW.changed = 0 AND NEW.kind = 'operator' BEGIN
    UPDATE reliability_sums SET changed = (SELECT next FROM stamps) WHERE rowid = NEW.rowid;
END;
CREATE TRIGGER reliability_sums_stamp AFTER UPDATE ON reliability_sums WHEN NEW.changed = OLD.changed AND NEW.kind = 'operator' BEGIN
    UPDATE reliability_sums SET changed = (SELECT next FROM stamps) WHERE rowid = NEW.rowid;
END;
