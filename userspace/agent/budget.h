/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * So many bytes an hour, and never more in any hour: half of them at any time, saved up, the other half
 * spread over the hour. Pure.
 */
#ifndef VMDEDUP_AGENT_BUDGET_H
#define VMDEDUP_AGENT_BUDGET_H

#include <stdint.h>

struct budget {
	uint64_t per_hour;
	int64_t left; /* bytes; below 0 when more was spent than was asked for */
	uint64_t at_ns;
	uint64_t part; /* of a byte, in 1 / (2 * 3600e9) */
};

/* Full. */
void budget_init(struct budget *b, uint64_t per_hour, uint64_t now_ns);
/* Bytes that may be spent now. */
uint64_t budget_left(struct budget *b, uint64_t now_ns);
void budget_spend(struct budget *b, uint64_t bytes);
/* What was spent and not needed. */
void budget_return(struct budget *b, uint64_t bytes);
/* When there will be @bytes, or all that there ever is; UINT64_MAX: never. */
uint64_t budget_when_ns(const struct budget *b, uint64_t bytes);

#endif
