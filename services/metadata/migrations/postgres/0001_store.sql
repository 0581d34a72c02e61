-- One row: who this store is, and how far it is. Everybody who writes locks it first, which puts all writes of all
-- instances into one order.
CREATE TABLE store (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    cluster_id TEXT NOT NULL,
    incarnation BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    compaction_floor BIGINT NOT NULL,
    -- Transaction that wrote this version of the row. The server keeps the same number in `xmin`; a row that a restore
    -- has put here carries the restore's there.
    writer BIGINT NOT NULL,
    -- Server, timeline, database, table and start of the server that the row was written on.
    lineage TEXT NOT NULL
) WITH (fillfactor = 10);

-- One row: who may decide. `epoch` fences every commit.
CREATE TABLE lease (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
) WITH (fillfactor = 10);

-- Newest version of each record, tombstones included. Text is compared byte by byte, whatever the database's own order is.
CREATE TABLE record (
    kind BIGINT NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    record_key TEXT COLLATE "C" NOT NULL,
    revision BIGINT NOT NULL,
    created_revision BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL,
    value BYTEA NOT NULL,
    PRIMARY KEY (kind, tenant, record_key)
);

CREATE INDEX record_by_revision ON record (revision);

-- What every revision above the compaction floor changed: what watches read.
CREATE TABLE change (
    revision BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    record_key TEXT COLLATE "C" NOT NULL,
    created_revision BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL,
    value BYTEA NOT NULL,
    PRIMARY KEY (revision, kind, tenant, record_key)
);
