// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "agent/filter_table.h"

#define MIN_COLUMNS 8
#define NO_FILTER   0 /* no filter has so few bits */

struct filter_table {
	size_t max_bytes;
	unsigned int shift;	/* rows: 1 << shift; 0: none yet */
	unsigned int row_bytes;
	uint8_t *rows;
	uint8_t shifts[FILTER_TABLE_MAX_COLUMNS]; /* of the filters, as folded */
};

struct filter_table *filter_table_new(size_t max_bytes, unsigned int columns)
{
	struct filter_table *t;

	if (columns < MIN_COLUMNS || columns > FILTER_TABLE_MAX_COLUMNS || columns & (columns - 1))
		return NULL;
	t = calloc(1, sizeof(*t));
	if (!t)
		return NULL;
	t->max_bytes = max_bytes;
	t->row_bytes = columns / 8;
	return t;
}

size_t filter_table_bytes(const struct filter_table *t)
{
	return t->rows ? (size_t)t->row_bytes << t->shift : 0;
}

void filter_table_free(struct filter_table *t)
{
	if (!t)
		return;
	if (t->rows)
		munmap(t->rows, filter_table_bytes(t));
	free(t);
}

unsigned int filter_table_columns(const struct filter_table *t)
{
	return t->row_bytes * 8;
}

/* Rows @from @shift on are those before again: what a shorter filter says of a position is what
 * it says of it modulo its length. */
static int resize(struct filter_table *t, unsigned int shift, unsigned int row_bytes)
{
	size_t bytes = (size_t)row_bytes << shift, row;
	uint8_t *rows;

	rows = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rows == MAP_FAILED)
		return -ENOMEM;
	if (t->rows) {
		for (row = 0; row < (size_t)1 << shift; row++)
			memcpy(rows + row * row_bytes,
			       t->rows + (row & (((size_t)1 << t->shift) - 1)) * t->row_bytes,
			       row_bytes);
		munmap(t->rows, filter_table_bytes(t));
	}
	t->rows = rows;
	t->shift = shift;
	t->row_bytes = row_bytes;
	return 0;
}

/* Makes room for filters of @shift, as far as memory allows. */
static int grow(struct filter_table *t, unsigned int shift)
{
	unsigned int row_bytes = t->row_bytes;

	if (t->rows && shift <= t->shift)
		return 0;
	while (row_bytes > MIN_COLUMNS / 8 && (size_t)row_bytes << shift > t->max_bytes)
		row_bytes /= 2;
	while (shift > FILTER_MIN_SHIFT && (size_t)row_bytes << shift > t->max_bytes)
		shift--;
	if (t->rows && shift <= t->shift)
		return 0;
	return resize(t, shift, row_bytes);
}

static void set_bit(struct filter_table *t, unsigned int column, size_t row)
{
	t->rows[row * t->row_bytes + column / 8] |= (uint8_t)(1 << column % 8);
}

void filter_table_clear(struct filter_table *t, unsigned int column)
{
	uint8_t keep = (uint8_t)~(1 << column % 8);
	size_t row;

	if (column >= filter_table_columns(t) || t->shifts[column] == NO_FILTER)
		return;
	for (row = 0; row < (size_t)1 << t->shift; row++)
		t->rows[row * t->row_bytes + column / 8] &= keep;
	t->shifts[column] = NO_FILTER;
}

/* Every row that stands for position @at of a filter of @shift bits. */
static void set_position(struct filter_table *t, unsigned int column, uint64_t at,
			 unsigned int shift)
{
	size_t row;

	for (row = (size_t)at; row < (size_t)1 << t->shift; row += (size_t)1 << shift)
		set_bit(t, column, row);
}

int filter_table_set(struct filter_table *t, unsigned int column, const uint8_t *bits,
		     unsigned int shift)
{
	unsigned int folded;
	size_t byte, bit;
	int r;

	if (shift < FILTER_MIN_SHIFT || shift > FILTER_MAX_SHIFT)
		return -EINVAL;
	r = grow(t, shift);
	if (r)
		return r;
	if (column >= filter_table_columns(t))
		return -ENOSPC;
	filter_table_clear(t, column);
	folded = shift < t->shift ? shift : t->shift;
	t->shifts[column] = (uint8_t)folded;
	for (byte = 0; byte < (size_t)1 << (shift - 3); byte++)
		for (bit = 0; bits[byte] >> bit; bit++)
			if (bits[byte] >> bit & 1)
				set_position(t, column, (byte * 8 + bit) & ((1ULL << folded) - 1),
					     folded);
	return 0;
}

void filter_table_add(struct filter_table *t, unsigned int column,
		      const uint8_t fp[FILTER_ADDED_SIZE])
{
	struct filter_hash h = filter_hash(fp);
	unsigned int i;

	if (column >= filter_table_columns(t) || t->shifts[column] == NO_FILTER)
		return;
	for (i = 0; i < FILTER_HASHES; i++)
		set_position(t, column, filter_position(&h, i, t->shifts[column]),
			     t->shifts[column]);
}

bool filter_table_find(const struct filter_table *t, const struct fp *fp,
		       uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8])
{
	struct filter_hash h = filter_hash(fp->b);
	unsigned int i, b;
	uint8_t any = 0;

	if (!t->rows)
		return false;
	/* Each row is a miss of the processor's caches: all of them at once, not one after another. */
	for (i = 0; i < FILTER_HASHES; i++)
		__builtin_prefetch(t->rows + filter_position(&h, i, t->shift) * t->row_bytes);
	memcpy(yes, t->rows + filter_position(&h, 0, t->shift) * t->row_bytes, t->row_bytes);
	for (i = 1; i < FILTER_HASHES; i++) {
		const uint8_t *row = t->rows + filter_position(&h, i, t->shift) * t->row_bytes;

		for (b = 0; b < t->row_bytes; b++)
			yes[b] &= row[b];
	}
	for (b = 0; b < t->row_bytes; b++)
		any |= yes[b];
	return any;
}
