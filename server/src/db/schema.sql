-- One home's database. SQL that SQLite and PostgreSQL both take; SQLite is given INTEGER instead of
-- BIGINT where a column numbers its rows. Ids are 32 bytes, records are kept as they were signed,
-- and every time is a reading of the home's running clock in milliseconds (see clock.rs).

CREATE TABLE home (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    schema_version BIGINT NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    incarnation BYTEA NOT NULL,
    founding_hash BYTEA NOT NULL,
    running_ms BIGINT NOT NULL,
    -- 1 after a restore: nothing may be collected.
    restored BIGINT NOT NULL
);

-- The roster, and the log of everything acknowledged with the chain's root after each entry.
CREATE TABLE roster (
    seq BIGINT PRIMARY KEY,
    entry BYTEA NOT NULL
);
CREATE TABLE log (
    position BIGINT PRIMARY KEY,
    entry BYTEA NOT NULL,
    root BYTEA NOT NULL,
    image BYTEA NOT NULL,
    device BYTEA NOT NULL
);
CREATE INDEX log_of_device ON log (device, position);

-- Daemon starts of each device, the outcomes of its calls, and invites under way. The highest instance is the
-- newest start; 0 is one that was heard of after a later one.
CREATE TABLE daemons (
    device BYTEA NOT NULL,
    nonce BYTEA NOT NULL,
    instance BIGINT NOT NULL,
    PRIMARY KEY (device, nonce)
);
CREATE INDEX daemons_newest ON daemons (device, instance);
CREATE TABLE requests (
    device BYTEA NOT NULL,
    request BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    outcome BYTEA NOT NULL,
    made_ms BIGINT NOT NULL,
    PRIMARY KEY (device, request)
);
CREATE INDEX requests_by_age ON requests (made_ms);
CREATE TABLE invites (
    invite BYTEA NOT NULL PRIMARY KEY,
    device BYTEA NOT NULL,
    until_ms BIGINT NOT NULL,
    request BYTEA,
    answer BYTEA
);

-- What was refused or taken by force. It is in no chain and of bounded length; no device stands for a
-- machine that was never on the roster.
CREATE TABLE audit (
    number BIGINT PRIMARY KEY,
    time_ms BIGINT NOT NULL,
    device BYTEA,
    image BYTEA,
    call TEXT NOT NULL,
    refusal TEXT,
    reason BYTEA NOT NULL
);

-- Images, their leases and their history. An image's row is never deleted: it keeps the epoch. What
-- remains to an image's lease and tombstone is counted from its as_of_ms.
CREATE TABLE images (
    image BYTEA NOT NULL PRIMARY KEY,
    tag BYTEA NOT NULL,
    descriptor BYTEA NOT NULL,
    head BYTEA,
    seq BIGINT,
    epoch BIGINT NOT NULL,
    trace BYTEA,
    stored_bytes BIGINT NOT NULL,
    tombstone_ms BIGINT,
    as_of_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX images_live_tag ON images (tag) WHERE tombstone_ms IS NULL;
CREATE TABLE leases (
    image BYTEA NOT NULL PRIMARY KEY REFERENCES images (image),
    device BYTEA NOT NULL,
    checkout BYTEA NOT NULL,
    epoch BIGINT NOT NULL,
    offline BIGINT NOT NULL,
    ttl_ms BIGINT NOT NULL,
    remaining_ms BIGINT NOT NULL,
    lapsed BIGINT NOT NULL,
    base BYTEA
);
CREATE TABLE commits (
    id BYTEA NOT NULL PRIMARY KEY,
    image BYTEA NOT NULL REFERENCES images (image),
    seq BIGINT NOT NULL,
    record BYTEA NOT NULL,
    receipt BYTEA NOT NULL
);
CREATE UNIQUE INDEX commits_in_order ON commits (image, seq);
-- The time of a record under the current token stands still, and it has all of it: no until_ms.
CREATE TABLE staged (
    image BYTEA NOT NULL REFERENCES images (image),
    checkout BYTEA NOT NULL,
    record BYTEA NOT NULL,
    until_ms BIGINT,
    PRIMARY KEY (image, checkout)
);
CREATE TABLE pins (
    id BYTEA NOT NULL REFERENCES commits (id),
    checkout BYTEA NOT NULL,
    device BYTEA NOT NULL,
    until_ms BIGINT NOT NULL,
    PRIMARY KEY (id, checkout)
);

-- Objects, where they lie, and which nodes still wait for children.
CREATE TABLE stores (
    number BIGINT PRIMARY KEY,
    pack BYTEA
);
CREATE TABLE objects (
    number BIGINT PRIMARY KEY,
    id BYTEA NOT NULL UNIQUE,
    store BIGINT NOT NULL,
    start BIGINT NOT NULL,
    len BIGINT NOT NULL,
    missing BIGINT NOT NULL
);
CREATE TABLE waits (
    child BYTEA NOT NULL,
    parent BIGINT NOT NULL,
    PRIMARY KEY (child, parent)
);
CREATE TABLE uploads (
    upload BYTEA NOT NULL PRIMARY KEY,
    device BYTEA NOT NULL,
    checkout BYTEA NOT NULL,
    active_ms BIGINT NOT NULL,
    new_bytes BIGINT NOT NULL
);
CREATE UNIQUE INDEX uploads_of_checkout ON uploads (device, checkout);
