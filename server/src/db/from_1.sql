-- What version 2 has beyond version 1.
ALTER TABLE home ADD COLUMN restored BIGINT NOT NULL DEFAULT 0;
CREATE TABLE audit (
    number BIGINT PRIMARY KEY,
    time_ms BIGINT NOT NULL,
    device BYTEA,
    image BYTEA,
    call TEXT NOT NULL,
    refusal TEXT,
    reason BYTEA NOT NULL
);
UPDATE home SET schema_version = 2;
