/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The meta server's counts, recomputed: `cluster check`, and before deletion is resumed. */
#ifndef VMDEDUP_CLI_CHECK_H
#define VMDEDUP_CLI_CHECK_H

#include <jansson.h>
#include "cli/connect.h"

struct check {
	uint64_t nodes, blocks, problems;
	json_t *list; /* of the problems' texts; the caller's */
};

/* Runs a whole check, or until the user stops it; says each problem on stderr. */
int check_counts(struct connection *cn, struct check *ck, struct error *err);

#endif
