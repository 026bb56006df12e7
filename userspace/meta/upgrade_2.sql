-- SPDX-License-Identifier: GPL-2.0-or-later
--
-- From schema 2 to schema 3, as a script of both stores. It stays as it is when the schema goes on.
CREATE TABLE lease_reports (
	image        BYTEA NOT NULL,
	epoch        BIGINT NOT NULL,
	unpushed     BIGINT NOT NULL,
	oldest_ms    BIGINT NOT NULL,
	reported_s   BIGINT NOT NULL,
	PRIMARY KEY (image, epoch)
) /*sqlite: WITHOUT ROWID */;

ALTER TABLE leases ADD COLUMN grown BYTEA;

CREATE TABLE hot_lists (
	image        BYTEA NOT NULL PRIMARY KEY,
	cache        BYTEA NOT NULL,
	blocks       BYTEA NOT NULL
);

ALTER TABLE servers ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
ALTER TABLE servers ADD COLUMN anew BIGINT NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN placed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN round BIGINT NOT NULL DEFAULT 0;

CREATE INDEX peers_rack ON peers (rack, cache);

-- A server that was being drained had that as its state.
UPDATE servers SET draining = 1 WHERE state = 3;

-- The disks of a receipt were packed without the map's version; what is gone is sent again.
DELETE FROM push_receipts;
DELETE FROM push_disks;

UPDATE cluster SET schema = 3;
