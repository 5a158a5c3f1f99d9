-- What version 3 has beyond version 2: a staged record's time is a reading of the clock, so that calls under
-- the lease need not write it again; several starts of a device may be heard of too late.
ALTER TABLE staged ADD COLUMN until_ms BIGINT;
UPDATE staged SET until_ms = remaining_ms
    + (SELECT as_of_ms FROM images WHERE images.image = staged.image);
ALTER TABLE staged DROP COLUMN remaining_ms;
DROP INDEX daemons_newest;
CREATE INDEX daemons_newest ON daemons (device, instance);
UPDATE home SET schema_version = 3;
