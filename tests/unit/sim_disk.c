// SPDX-License-Identifier: GPL-2.0-or-later
#include "sim_disk.h"

#define SECTOR 512

u64 sim_random(struct sim_disk *sim)
{
	u64 z = sim->rng += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static bool io_fits(const struct sim_disk *sim, const struct dedup_io *io)
{
	return io->offset % SECTOR == 0 && io->len % SECTOR == 0 && io->len &&
	       io->offset + io->len <= sim->bytes;
}

static int sim_read(void *ctx, const struct dedup_io *ios, unsigned int n)
{
	struct sim_disk *sim = ctx;

	for (unsigned int i = 0; i < n; i++) {
		if (!io_fits(sim, &ios[i]))
			return -EINVAL;
		memcpy(ios[i].buf, sim->now + ios[i].offset, ios[i].len);
	}
	return 0;
}

static void settle(struct sim_disk *sim)
{
	for (u64 i = 0; i < sim->nr_sectors; i++) {
		if (!sim->dirty[i])
			continue;
		memcpy(sim->durable + i * SECTOR, sim->now + i * SECTOR, SECTOR);
		sim->dirty[i] = 0;
	}
}

static int begin_op(struct sim_disk *sim)
{
	return ++sim->ops == sim->fail_at ? -EIO : 0;
}

static int sim_flush(void *ctx)
{
	struct sim_disk *sim = ctx;

	if (begin_op(sim))
		return -EIO;
	if (sim->cut)
		sim->cut(sim, sim->arg);
	settle(sim);
	return 0;
}

static int sim_write(void *ctx, const struct dedup_io *ios, unsigned int n, bool fua)
{
	struct sim_disk *sim = ctx;
	int r = begin_op(sim);

	if (fua)
		settle(sim);
	for (unsigned int i = 0; i < n; i++) {
		if (!io_fits(sim, &ios[i]))
			return -EINVAL;
		memcpy(sim->now + ios[i].offset, ios[i].buf, ios[i].len);
		memset(sim->dirty + ios[i].offset / SECTOR, 1, ios[i].len / SECTOR);
	}
	if (r)
		return r;
	if (sim->cut)
		sim->cut(sim, sim->arg);
	if (fua)
		settle(sim);
	return 0;
}

static const struct dedup_disk_ops sim_ops = {
	.read = sim_read,
	.write = sim_write,
	.flush = sim_flush,
};

int sim_disk_init(struct sim_disk *sim, u64 bytes, u64 seed)
{
	memset(sim, 0, sizeof(*sim));
	sim->bytes = bytes;
	sim->nr_sectors = bytes / SECTOR;
	sim->rng = seed;
	sim->now = calloc(1, bytes);
	sim->durable = calloc(1, bytes);
	sim->dirty = calloc(1, sim->nr_sectors);
	sim->disk = (struct dedup_disk){ &sim_ops, sim, bytes };
	return sim->now && sim->durable && sim->dirty ? 0 : -ENOMEM;
}

void sim_disk_exit(struct sim_disk *sim)
{
	free(sim->now);
	free(sim->durable);
	free(sim->dirty);
}

void sim_disk_crash(struct sim_disk *sim, u8 *image)
{
	/* How much of what is not durable survives: nothing, all, most, or any half. */
	static const unsigned int keep[] = { 0, 256, 240, 128, 16 };
	unsigned int k = keep[sim_random(sim) % 5];

	memcpy(image, sim->durable, sim->bytes);
	for (u64 i = 0; i < sim->nr_sectors; i++)
		if (sim->dirty[i] && (sim_random(sim) & 255) < k)
			memcpy(image + i * SECTOR, sim->now + i * SECTOR, SECTOR);
}

void sim_disk_load(struct sim_disk *sim, const u8 *image)
{
	memcpy(sim->now, image, sim->bytes);
	memcpy(sim->durable, image, sim->bytes);
	memset(sim->dirty, 0, sim->nr_sectors);
}
