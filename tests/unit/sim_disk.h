/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk in memory with a volatile cache, for tests of crashes. What was written since the last
 * flush may be lost or kept in any combination of 512-byte sectors, the write in flight
 * likewise.
 */
#ifndef VMDEDUP_TESTS_SIM_DISK_H
#define VMDEDUP_TESTS_SIM_DISK_H

#include "disk.h"

struct sim_disk {
	struct dedup_disk disk;
	u64 bytes;
	u8 *now;		/* what a read returns */
	u8 *durable;		/* what surely survives */
	u8 *dirty;		/* by sector: written since the last flush */
	u64 nr_sectors;
	u64 rng;
	u64 ops;		/* writes and flushes so far */
	u64 fail_at;		/* the op that fails with EIO; 0: none */
	/* Called in the middle of each write or flush, which a crash now would leave in part. */
	void (*cut)(struct sim_disk *sim, void *arg);
	void *arg;
};

int sim_disk_init(struct sim_disk *sim, u64 bytes, u64 seed);
void sim_disk_exit(struct sim_disk *sim);
u64 sim_random(struct sim_disk *sim);

/* What a power cut now could leave: a copy of the disk's size at @image. */
void sim_disk_crash(struct sim_disk *sim, u8 *image);

/* The disk becomes @image, all of it durable. */
void sim_disk_load(struct sim_disk *sim, const u8 *image);

#endif
