// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdio.h>
#include "base/cleanup.h"
#include "cli/origins.h"

static const char *const names[] = { "cache", "zero", "data", "peer" };
static const char *const texts[] = { "from here", "zero", "from data servers", "from peers" };

json_t *origins_json(const uint64_t *values, size_t nr)
{
	json_t *j = json_object();

	for (size_t i = 0; i < MIN(nr, ARRAY_SIZE(names)); i++)
		json_object_set_new(j, names[i], json_integer((json_int_t)values[i]));
	return j;
}

void origins_print(const uint64_t counts[4], const uint64_t *latency_us, size_t nr)
{
	printf("           ");
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		printf("%s%llu %s", i ? ", " : "", (unsigned long long)counts[i], texts[i]);
		if (i < nr && counts[i])
			printf(" (%.1f ms)", (double)latency_us[i] / 1000);
	}
	printf("\n");
}
