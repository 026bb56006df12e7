-- SPDX-License-Identifier: GPL-2.0-or-later
--
-- From schema 1, which only SQLite has had, to schema 2. It stays as it is when the schema goes on.
ALTER TABLE cluster ADD COLUMN deletion INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cluster ADD COLUMN out_after_s INTEGER NOT NULL DEFAULT 600;
ALTER TABLE servers ADD COLUMN by_itself INTEGER NOT NULL DEFAULT 0;
ALTER TABLE servers ADD COLUMN session BYTEA;
ALTER TABLE replicas ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN missed INTEGER NOT NULL DEFAULT 0;

CREATE TABLE governor (
	one          INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
	holder       BYTEA NOT NULL,
	epoch        BIGINT NOT NULL,
	beat         BIGINT NOT NULL
);

CREATE TABLE peers (
	cache        BYTEA NOT NULL PRIMARY KEY,
	endpoint     TEXT NOT NULL,
	curve_key    BYTEA NOT NULL,
	host         TEXT NOT NULL,
	rack         TEXT NOT NULL,
	until_s      BIGINT NOT NULL,
	accused      BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX peers_until ON peers (until_s);
CREATE INDEX peers_endpoint ON peers (endpoint);

CREATE TABLE peer_images (
	cache        BYTEA NOT NULL,
	image        BYTEA NOT NULL,
	PRIMARY KEY (cache, image)
) WITHOUT ROWID;
CREATE INDEX peer_images_image ON peer_images (image, cache);

CREATE TABLE traces (
	root         BYTEA NOT NULL PRIMARY KEY,
	image        BYTEA NOT NULL,
	blocks       BYTEA NOT NULL,
	stored_s     BIGINT NOT NULL
);
CREATE INDEX traces_image ON traces (image, stored_s);
CREATE INDEX traces_stored ON traces (stored_s);

UPDATE cluster SET schema = 2;
