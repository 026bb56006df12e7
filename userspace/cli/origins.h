/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where reads that missed came from: this host's cache, zeros, data servers, peers. */
#ifndef VMDEDUP_CLI_ORIGINS_H
#define VMDEDUP_CLI_ORIGINS_H

#include "cli/ui.h"

/* {"cache": N, "zero": N, "data": N, "peer": N}; what an older agent does not tell is left out. */
json_t *origins_json(const uint64_t *values, size_t nr);
/* A line of `vmdedup status`. */
void origins_print(const uint64_t counts[4], const uint64_t *latency_us, size_t nr);

#endif
