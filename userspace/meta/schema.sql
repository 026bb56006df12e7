-- SPDX-License-Identifier: GPL-2.0-or-later
--
-- The meta server's data model, for SQLite and for PostgreSQL. What one of them alone
-- understands stands in a comment that begins with its name; the store uncovers it.
--
-- Fingerprints, hashes and roots are 32 bytes, UUIDs 16. A root of 32 zero bytes is an image
-- of zeros alone: no node stands for it, and it counts nothing. 64-bit numbers are stored as
-- signed. Columns that end in _s are seconds since 1970, but for used_s: it is in seconds of
-- service (cluster.age_s), which neither a jump of the clock nor a stopped server moves.
--
-- A count is the number of places that name a row: increments before decrements, both in the
-- transaction that changes the place. `vmdedup cluster check` recomputes them all.

-- The cluster: one row. uuid is written into every cache and asked by every client. history
-- changes when a backup is restored. algorithm, block_shift: for good. receipt_key
-- authenticates receipts between data and meta servers. map_version goes up with every change of
-- servers, replicas or epochs, members_version only when a receipt could lose its worth by it.
-- deletion: 1 since a restore, until a person has agreed: data servers delete nothing.
CREATE TABLE cluster (
	one          INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
	schema       INTEGER NOT NULL,
	uuid         BYTEA NOT NULL,
	history      BYTEA NOT NULL,
	name         TEXT NOT NULL,
	algorithm    INTEGER NOT NULL,
	block_shift  INTEGER NOT NULL,
	replicas     INTEGER NOT NULL,
	min_copies   INTEGER NOT NULL,
	receipt_key  BYTEA NOT NULL,
	map_version  BIGINT NOT NULL,
	members_version BIGINT NOT NULL,
	age_s        BIGINT NOT NULL,
	created_s    BIGINT NOT NULL,
	deletion     INTEGER NOT NULL DEFAULT 0,
	out_after_s  INTEGER NOT NULL DEFAULT 600
);

-- The governor's lease: who governs (16 random bytes of the process) and its fencing epoch. beat
-- goes up while it lives; who sees it stand still for long enough takes over with epoch + 1, and
-- from then on every transaction of the former governor is refused by the epoch.
CREATE TABLE governor (
	one          INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
	holder       BYTEA NOT NULL,
	epoch        BIGINT NOT NULL,
	beat         BIGINT NOT NULL
);

-- Dedup domains. Fingerprints are digests of key and content, so that two domains never share
-- a block. 0 is `public`, with an empty key.
CREATE TABLE domains (
	id           INTEGER NOT NULL PRIMARY KEY,
	name         TEXT NOT NULL UNIQUE,
	key          BYTEA NOT NULL,
	created_s    BIGINT NOT NULL
);

-- Data servers, one for each disk. incarnation goes up when a disk's content starts anew; what
-- an older incarnation vouched for no longer counts. commits is the disk's own count of commits: if
-- it goes down, the disk has been put back from a copy; so it has if it does not name the first
-- UUID of session: of the processes that joined with it, the last one first. A null UUID before it
-- says that the disk has not named it yet, and may name the second one. state: enum server_state. by_itself: the
-- governor took it out, nobody asked for it. draining: somebody did ask, and it is down or out; when
-- it is back it drains on. anew: the map version at which its content was last not what it had been;
-- receipts of older versions say nothing about it.
CREATE TABLE servers (
	id           INTEGER NOT NULL PRIMARY KEY,
	disk         BYTEA NOT NULL UNIQUE,
	incarnation  BIGINT NOT NULL,
	endpoint     TEXT NOT NULL,
	curve_key    BYTEA NOT NULL,
	capacity     BIGINT NOT NULL,
	free         BIGINT NOT NULL,
	commits      BIGINT NOT NULL,
	host         TEXT NOT NULL,
	rack         TEXT NOT NULL,
	state        INTEGER NOT NULL,
	joined_s     BIGINT NOT NULL,
	seen_s       BIGINT NOT NULL,
	by_itself    INTEGER NOT NULL DEFAULT 0,
	session      BYTEA,
	draining     INTEGER NOT NULL DEFAULT 0,
	anew         BIGINT NOT NULL DEFAULT 0
);

-- The 1024 shards and their GC epochs E: a receipt below E counts for nothing.
CREATE TABLE shards (
	shard        INTEGER NOT NULL PRIMARY KEY,
	epoch        BIGINT NOT NULL
);

-- The shard map: who holds a shard, in order; a missing row is a place not filled. state:
-- enum replica_state; a current or leaving replica has all blocks of its shard that are named, and
-- only it counts in receipts. since: the map version at which it became so. missed: a write that
-- counted did not reach this stale replica since its reconciliation began. placed: the map version at
-- which the server got the place; what it vouched for before may be gone. round: of the
-- reconciliation that may end.
CREATE TABLE replicas (
	shard        INTEGER NOT NULL REFERENCES shards (shard),
	replica      INTEGER NOT NULL,
	server       INTEGER NOT NULL REFERENCES servers (id),
	state        INTEGER NOT NULL,
	since        BIGINT NOT NULL DEFAULT 0,
	missed       INTEGER NOT NULL DEFAULT 0,
	placed       BIGINT NOT NULL DEFAULT 0,
	round        BIGINT NOT NULL DEFAULT 0,
	PRIMARY KEY (shard, replica)
) /*sqlite: WITHOUT ROWID */;

-- Clients' sessions: sequence is that of the last mutation, digest its request's SHA-256 and
-- result its packed reply, written in the mutation's own transaction. nonce makes opening a
-- session repeatable.
CREATE TABLE sessions (
	id           BIGINT NOT NULL PRIMARY KEY,
	nonce        BYTEA NOT NULL UNIQUE,
	name         TEXT NOT NULL,
	sequence     BIGINT NOT NULL,
	digest       BYTEA NOT NULL,
	result       BYTEA NOT NULL,
	used_s       BIGINT NOT NULL
) /*sqlite: WITHOUT ROWID */;
CREATE INDEX sessions_used ON sessions (used_s);

-- Images. root is the head's, and counts one on its node. (head_epoch, head_cut) name the push
-- that made the head, head_parent the root it stood on and head_version the version made from
-- it (0: none). lease_epoch is the highest ever granted. A removed image has no name; its
-- versions and root are given back in steps, then the row goes.
CREATE TABLE images (
	uuid         BYTEA NOT NULL PRIMARY KEY,
	name         TEXT /*postgresql: COLLATE "C" */ UNIQUE,
	domain       INTEGER NOT NULL REFERENCES domains (id),
	size         BIGINT NOT NULL CHECK (size > 0),
	root         BYTEA NOT NULL,
	head_epoch   BIGINT NOT NULL,
	head_cut     BIGINT NOT NULL,
	head_parent  BYTEA NOT NULL,
	head_version BIGINT NOT NULL,
	lease_epoch  BIGINT NOT NULL,
	last_version BIGINT NOT NULL,
	versions     BIGINT NOT NULL,
	created_s    BIGINT NOT NULL,
	changed_s    BIGINT NOT NULL,
	removed      INTEGER NOT NULL DEFAULT 0
) /*sqlite: WITHOUT ROWID */;
CREATE INDEX images_removed ON images (uuid) WHERE removed = 1;

-- Numbered states of an image. Each counts one on its root.
CREATE TABLE versions (
	image        BYTEA NOT NULL REFERENCES images (uuid),
	number       BIGINT NOT NULL,
	root         BYTEA NOT NULL,
	size         BIGINT NOT NULL,
	created_s    BIGINT NOT NULL,
	label        TEXT NOT NULL,
	PRIMARY KEY (image, number)
) /*sqlite: WITHOUT ROWID */;

-- Leases: the one writer of an image is the cache in the row with state 0 (active). A broken one
-- (state 1) can commit nothing, but its last root and the parent of that one stay counted,
-- because the cache may hold dirty data above either, until it is recovered or given up. The
-- image may be gone by then. A reader (state 2) is no lease: root is what a read-only or ephemeral volume
-- of the cache was opened with last, parent_root what it may still have on record, epoch a random number.
-- grown: the head that a resize has made of root since: the next push may
-- still name root as its parent.
CREATE TABLE leases (
	image        BYTEA NOT NULL,
	epoch        BIGINT NOT NULL,
	state        INTEGER NOT NULL,
	cache        BYTEA NOT NULL,
	host         TEXT NOT NULL,
	domain       INTEGER NOT NULL,
	name         TEXT NOT NULL,
	size         BIGINT NOT NULL,
	root         BYTEA NOT NULL,
	parent_root  BYTEA NOT NULL,
	cut          BIGINT NOT NULL,
	since_s      BIGINT NOT NULL,
	grown        BYTEA,
	PRIMARY KEY (image, epoch)
) /*sqlite: WITHOUT ROWID */;
CREATE UNIQUE INDEX leases_active ON leases (image) WHERE state = 0;

-- What the holder of a lease last said of its volume: bytes that are not pushed, and the age of the
-- oldest of them just then. A hint for people.
CREATE TABLE lease_reports (
	image        BYTEA NOT NULL,
	epoch        BIGINT NOT NULL,
	unpushed     BIGINT NOT NULL,
	oldest_ms    BIGINT NOT NULL,
	reported_s   BIGINT NOT NULL,
	PRIMARY KEY (image, epoch)
) /*sqlite: WITHOUT ROWID */;

-- What a handover gave along: the blocks of the image that the host before had in its cache, for the
-- cache that has the lease now. A hint, until the lease ends.
CREATE TABLE hot_lists (
	image        BYTEA NOT NULL PRIMARY KEY,
	cache        BYTEA NOT NULL,
	blocks       BYTEA NOT NULL
);

-- Recipe nodes. count is the number of parents' entries, heads, versions, leases' roots and
-- pushes that name the node; a node with count 0 is in `dying`. A node spans between blocks_min
-- and blocks_max blocks (they differ where its last subtree is zeros). The bytes stand apart so
-- that a count is a small write.
CREATE TABLE nodes (
	hash         BYTEA NOT NULL,
	domain       INTEGER NOT NULL,
	level        INTEGER NOT NULL,
	count        BIGINT NOT NULL CHECK (count >= 0),
	blocks_min   BIGINT NOT NULL,
	blocks_max   BIGINT NOT NULL,
	PRIMARY KEY (hash, domain)
) /*sqlite: WITHOUT ROWID */;
CREATE TABLE node_data (
	hash         BYTEA NOT NULL,
	domain       INTEGER NOT NULL,
	data         BYTEA NOT NULL,
	PRIMARY KEY (hash, domain)
);

-- Nodes with count 0, whose entries are not given back yet.
CREATE TABLE dying (
	hash         BYTEA NOT NULL,
	domain       INTEGER NOT NULL,
	PRIMARY KEY (hash, domain)
) /*sqlite: WITHOUT ROWID */;

-- Blocks. count is the number of leaves' entries that name the block. At 0 it waits for its
-- shard's next collection, which raises the epoch and sets condemned to it; from then on copies
-- with an older stamp may be deleted. Being named again resets condemned, and needs a receipt.
CREATE TABLE blocks (
	domain       INTEGER NOT NULL,
	fp           BYTEA NOT NULL,
	count        BIGINT NOT NULL CHECK (count >= 0),
	condemned    BIGINT NOT NULL,
	PRIMARY KEY (domain, fp)
) /*sqlite: WITHOUT ROWID */;
CREATE INDEX blocks_dead ON blocks (fp, domain) WHERE count = 0 AND condemned = 0;
CREATE INDEX blocks_condemned ON blocks (fp, domain) WHERE condemned > 0;

-- How many rows of nodes there are, and of blocks with a count above 0, so that nobody has to
-- count them. The sum of all slots; a process adds to one of them, so that two do not wait for
-- each other.
CREATE TABLE totals (
	slot         INTEGER NOT NULL PRIMARY KEY,
	nodes        BIGINT NOT NULL,
	blocks       BIGINT NOT NULL
);

-- Pushes: an import (name, no image) or a volume's cut (image, epoch, cut, parent_root). state:
-- 0 open, 1 over (committed, aborted or abandoned; its rows below are removed in steps). nodes
-- and receipts count its rows, to bound them. members_version: the cluster's when the oldest of its
-- receipts was checked; another one at the commit makes it check them again.
CREATE TABLE pushes (
	id           BIGINT NOT NULL PRIMARY KEY,
	state        INTEGER NOT NULL,
	name         TEXT,
	image        BYTEA,
	epoch        BIGINT NOT NULL,
	cut          BIGINT NOT NULL,
	parent_root  BYTEA NOT NULL,
	domain       INTEGER NOT NULL REFERENCES domains (id),
	size         BIGINT NOT NULL,
	make_version INTEGER NOT NULL,
	label        TEXT NOT NULL,
	nodes        BIGINT NOT NULL,
	receipts     BIGINT NOT NULL,
	members_version BIGINT NOT NULL,
	used_s       BIGINT NOT NULL
) /*sqlite: WITHOUT ROWID */;
CREATE UNIQUE INDEX pushes_cut ON pushes (image, epoch, cut) WHERE state = 0 AND image IS NOT NULL;
CREATE INDEX pushes_over ON pushes (id) WHERE state = 1;

-- Nodes that a push has sent; each counts one on the node until the push is over.
CREATE TABLE push_nodes (
	push         BIGINT NOT NULL,
	hash         BYTEA NOT NULL,
	PRIMARY KEY (push, hash)
) /*sqlite: WITHOUT ROWID */;

-- Receipts of a push: block, epoch, and which disks (a row of push_disks: UUID, incarnation
-- and map version of each, packed). Kept until the push is over: the commit checks the disks again.
CREATE TABLE push_receipts (
	push         BIGINT NOT NULL,
	fp           BYTEA NOT NULL,
	epoch        BIGINT NOT NULL,
	disks        INTEGER NOT NULL,
	PRIMARY KEY (push, fp)
) /*sqlite: WITHOUT ROWID */;
CREATE TABLE push_disks (
	push         BIGINT NOT NULL,
	disks        INTEGER NOT NULL,
	packed       BYTEA NOT NULL,
	PRIMARY KEY (push, packed)
) /*sqlite: WITHOUT ROWID */;

-- Agents that serve peers, until they say so again (until_s). accused: how often others say that it
-- sent a block that did not match its fingerprint. All of it is hints: it may be lost.
CREATE TABLE peers (
	cache        BYTEA NOT NULL PRIMARY KEY,
	endpoint     TEXT NOT NULL,
	curve_key    BYTEA NOT NULL,
	host         TEXT NOT NULL,
	rack         TEXT NOT NULL,
	until_s      BIGINT NOT NULL,
	accused      BIGINT NOT NULL
) /*sqlite: WITHOUT ROWID */;
CREATE INDEX peers_until ON peers (until_s);
CREATE INDEX peers_endpoint ON peers (endpoint);
CREATE INDEX peers_rack ON peers (rack, cache);

-- The images that are open on them.
CREATE TABLE peer_images (
	cache        BYTEA NOT NULL,
	image        BYTEA NOT NULL,
	PRIMARY KEY (cache, image)
) /*sqlite: WITHOUT ROWID */;
CREATE INDEX peer_images_image ON peer_images (image, cache);

-- The order in which a boot from a root first touched its blocks (TracePut). Hints as well.
CREATE TABLE traces (
	root         BYTEA NOT NULL PRIMARY KEY,
	image        BYTEA NOT NULL,
	blocks       BYTEA NOT NULL,
	stored_s     BIGINT NOT NULL
);
CREATE INDEX traces_image ON traces (image, stored_s);
CREATE INDEX traces_stored ON traces (stored_s);
