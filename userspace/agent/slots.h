/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The index of a cache's CLEAN slots by fingerprint. The kernel keeps none, and tells nobody when
 * it evicts: an entry is a hint, and the slot's sequence, which every use carries, decides. One
 * entry of 48 bytes for each slot of the cache (touched only when used).
 */
#ifndef VMDEDUP_AGENT_SLOTS_H
#define VMDEDUP_AGENT_SLOTS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/fingerprint.h"

struct slots;
struct slots *slots_new(uint64_t nr_slots); /* NULL: out of memory, or more than 2^32 - 2 */
void slots_free(struct slots *s);
/* Slot holds @fp since @seq. An older sequence than the one that is known changes nothing. */
void slots_set(struct slots *s, uint64_t slot, uint64_t seq, const struct fp *fp);
/* Forget it, unless the slot has another sequence by now. */
void slots_drop(struct slots *s, uint64_t slot, uint64_t seq);
bool slots_find(const struct slots *s, const struct fp *fp, uint64_t *slot, uint64_t *seq);
void slots_each(const struct slots *s, void (*visit)(void *arg, const struct fp *fp), void *arg);
uint64_t slots_count(const struct slots *s);

#endif
