-- Machines of the user's own that were told over the API, as they were told.
CREATE TABLE ssh_machines (
    name         TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    machine_json TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT NOT NULL
);

-- Who lives on one: the counterpart of a contract. `touched` comes before the first act there, and
-- `releasing` before the last; a row goes when nothing of the lease is left on the machine.
CREATE TABLE ssh_leases (
    id           TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    label        TEXT COLLATE "C" NOT NULL UNIQUE,
    machine      TEXT COLLATE "C" NOT NULL,
    slot         BIGINT NOT NULL,
    -- The machine as it was then: it must be found and cleaned when the inventory forgets it.
    machine_json TEXT COLLATE "C" NOT NULL,
    touched      BOOLEAN NOT NULL,
    -- The lease's directory there, once it is made.
    home         TEXT COLLATE "C",
    releasing    BOOLEAN NOT NULL,
    created_at   BIGINT NOT NULL,
    UNIQUE (machine, slot)
);

-- Host keys as they were seen first, by `host:port`.
CREATE TABLE ssh_host_keys (
    endpoint TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    key      TEXT COLLATE "C" NOT NULL,
    seen_at  BIGINT NOT NULL
);

-- Who logs in, where it is not root, and the directory that stands for the machine's root, where
-- the workspace does not have the machine for itself.
ALTER TABLE instances ADD COLUMN ssh_user TEXT COLLATE "C";
ALTER TABLE instances ADD COLUMN home TEXT COLLATE "C";
