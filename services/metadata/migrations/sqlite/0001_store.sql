-- One row: who this store is, and how far it is.
CREATE TABLE store (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    cluster_id TEXT NOT NULL,
    incarnation BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    compaction_floor BIGINT NOT NULL
);

-- One row: who may decide. `epoch` fences every commit.
CREATE TABLE lease (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);

-- Newest version of each record, tombstones included. Text is compared byte by byte.
CREATE TABLE record (
    kind BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    record_key TEXT NOT NULL,
    revision BIGINT NOT NULL,
    created_revision BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (kind, tenant, record_key)
);

CREATE INDEX record_by_revision ON record (revision);

-- What every revision above the compaction floor changed: what watches read.
CREATE TABLE change (
    revision BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    record_key TEXT NOT NULL,
    created_revision BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (revision, kind, tenant, record_key)
);
