// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent/budget.h"
#include "base/cleanup.h"

#define HOUR_NS 3600000000000ULL

static int64_t most(const struct budget *b)
{
	return (int64_t)(b->per_hour / 2);
}

void budget_init(struct budget *b, uint64_t per_hour, uint64_t now_ns)
{
	*b = (struct budget){ .per_hour = MIN(per_hour, 1ULL << 50), .at_ns = now_ns };
	b->left = most(b);
}

uint64_t budget_left(struct budget *b, uint64_t now_ns)
{
	unsigned __int128 earned;

	if (now_ns > b->at_ns) {
		earned = (unsigned __int128)(now_ns - b->at_ns) * b->per_hour + b->part;
		b->part = (uint64_t)(earned % (2 * HOUR_NS));
		earned /= 2 * HOUR_NS;
		b->left += (int64_t)MIN(earned, (unsigned __int128)1 << 60);
		b->left = MIN(b->left, most(b));
		b->at_ns = now_ns;
	}
	return b->left > 0 ? (uint64_t)b->left : 0;
}

void budget_spend(struct budget *b, uint64_t bytes)
{
	b->left -= (int64_t)MIN(bytes, 1ULL << 50);
}

void budget_return(struct budget *b, uint64_t bytes)
{
	b->left = MIN(b->left + (int64_t)MIN(bytes, 1ULL << 50), most(b));
}

uint64_t budget_when_ns(const struct budget *b, uint64_t bytes)
{
	int64_t goal = (int64_t)MIN(bytes, (uint64_t)most(b));

	if (!b->per_hour)
		return UINT64_MAX;
	if (b->left >= goal)
		return b->at_ns;
	return b->at_ns + (uint64_t)((unsigned __int128)(goal - b->left) * 2 * HOUR_NS /
				     b->per_hour) + 1;
}
