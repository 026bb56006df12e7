/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Backups of a store, restored stores, and moving a store to another database. A backup is the same
 * file whichever database it comes from, and goes into either.
 */
#ifndef VMDEDUP_META_BACKUP_H
#define VMDEDUP_META_BACKUP_H

#include <stdint.h>
#include "base/error.h"

struct backup_stats {
	uint64_t rows;
	uint64_t bytes; /* of the file */
	uint64_t images; /* named ones */
};

/*
 * Writes what is committed in the store to @file (0600: the cluster's keys are in it), which
 * appears when it is whole and durable. Servers go on meanwhile. -EEXIST: the file is there.
 */
int meta_backup(const char *store, const char *file, struct backup_stats *stats,
		struct error *err);

/*
 * Makes a store of a backup: -EEXIST when there is a cluster. It is a new history: sessions are
 * over, open pushes too, epochs and the map's version jump beyond any that were given out since
 * the backup, and nothing is deleted from data servers until a person has agreed
 * (cluster.deletion).
 */
int meta_restore(const char *file, const char *store, struct backup_stats *stats,
		 struct error *err);

/*
 * Copies a store to another database, in the same history. @from must have no server (-EBUSY): a
 * SQLite file, which is renamed to *.moved when the copy is durable.
 */
int meta_migrate(const char *from, const char *to, struct backup_stats *stats, struct error *err);

#endif
