/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the verbs show: a progress bar, tables, JSON, times and sizes. */
#ifndef VMDEDUP_CLI_UI_H
#define VMDEDUP_CLI_UI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/fingerprint.h"

/* A bar on stderr when that is a terminal; else nothing. */
struct progress {
	const char *label;
	uint64_t total; /* bytes */
	uint64_t start_ns, drawn_ns;
	bool on;
};
void progress_start(struct progress *p, const char *label, uint64_t total);
void progress_update(struct progress *p, uint64_t done);
void progress_end(struct progress *p); /* removes the bar */

/* Rows of text, columns as wide as their widest cell. Cells are copied. */
struct table;
struct table *table_new(const char *const *heads, size_t columns); /* "<" before a head: left */
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void table_print(struct table *t); /* and frees it */

/* Prints and frees. */
void json_show(json_t *j);
json_t *json_fp(const uint8_t *data, size_t len);
json_t *json_uuid(const uint8_t *data, size_t len);

const char *time_to_text(uint64_t seconds_since_1970, char text[32]);
/* "12 s", "3 min", "2 h", "4 d" */
const char *duration_to_text(uint64_t ms, char text[32]);
/* A root or fingerprint, short enough for a table. */
const char *fp_short(const uint8_t *data, size_t len, char text[16]);

#endif
