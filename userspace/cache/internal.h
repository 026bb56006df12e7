/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_CACHE_INTERNAL_H
#define VMDEDUP_CACHE_INTERNAL_H

#include "ledger.h"
#include "cache/cache.h"
#include "cache/disk_file.h"

void cache_info_fill(struct cache_info *info, const struct dedup_super *sb);

#endif
