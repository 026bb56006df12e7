/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A check under way; one at a time in a process. */
#ifndef VMDEDUP_META_CHECK_H
#define VMDEDUP_META_CHECK_H

#include "meta/core.h"

struct check;
void check_free(struct check *k); /* NULL is fine */
/* Ends the check when nobody has asked for its next step for CHECK_IDLE_S: its snapshot keeps the
 * store from reusing space. */
#define CHECK_IDLE_S 120
void check_expire(struct meta *m);

#endif
