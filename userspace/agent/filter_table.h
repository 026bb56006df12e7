/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The filters of many peers, bit-sliced: a row for each bit position, a column for each peer. The
 * rows at a block's k positions, ANDed, name every peer whose filter says yes: k reads in all,
 * where one filter after another would be k reads for each peer (the multi-dimensional filter of
 * the design).
 *
 * The table has as many rows as the longest filter has bits. A shorter one is repeated; when
 * memory does not suffice, first the number of columns is halved (down to 8), then filters
 * are folded, which makes them say yes more often. One thread.
 */
#ifndef VMDEDUP_AGENT_FILTER_TABLE_H
#define VMDEDUP_AGENT_FILTER_TABLE_H

#include "agent/filter.h"

#define FILTER_TABLE_MAX_COLUMNS 1024

struct filter_table;
/* @max_bytes of rows. @columns: a power of two from 8 to FILTER_TABLE_MAX_COLUMNS. */
struct filter_table *filter_table_new(size_t max_bytes, unsigned int columns);
void filter_table_free(struct filter_table *t);
/* How many columns there are now: fewer once long filters have come. */
unsigned int filter_table_columns(const struct filter_table *t);
size_t filter_table_bytes(const struct filter_table *t);

/* @bits: 1 << @shift of them. -ENOSPC: no such column (any more); -EINVAL: @shift or another k than
 * FILTER_HASHES; -ENOMEM. */
int filter_table_set(struct filter_table *t, unsigned int column, const uint8_t *bits,
		     unsigned int shift);
/* A block that was added to a filter that is there; nothing where none is. */
void filter_table_add(struct filter_table *t, unsigned int column,
		      const uint8_t fp[FILTER_ADDED_SIZE]);
void filter_table_clear(struct filter_table *t, unsigned int column);
/* The columns that say yes, as bits of @yes (bit c % 8 of byte c / 8). Returns whether there are
 * any. */
bool filter_table_find(const struct filter_table *t, const struct fp *fp,
		       uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8]);

#endif
