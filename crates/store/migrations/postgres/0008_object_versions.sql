-- Which version of an object is the one that was completed, in buckets that keep versions:
-- every later read names it, so a late overwrite changes nothing that is restored.
CREATE TABLE object_versions (
    key     TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    version TEXT COLLATE "C" NOT NULL
);
