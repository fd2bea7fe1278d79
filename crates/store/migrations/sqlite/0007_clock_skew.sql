-- How far a machine's clock was off when it became ready; unknown for older rows.
ALTER TABLE instances ADD COLUMN clock_skew_ms BIGINT;
