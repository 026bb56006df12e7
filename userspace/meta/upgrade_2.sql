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

CREATE TABLE hot_lists (
	image        BYTEA NOT NULL PRIMARY KEY,
	cache        BYTEA NOT NULL,
	blocks       BYTEA NOT NULL
);

UPDATE cluster SET schema = 3;
