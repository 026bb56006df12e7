// SPDX-License-Identifier: GPL-2.0-only
#include <linux/delay.h>
#include "inflight.h"

int inflight_init(struct inflight *f)
{
	f->cpu = alloc_percpu(struct inflight_cpu);
	if (!f->cpu)
		return -ENOMEM;
	f->epoch = 0;
	mutex_init(&f->mutex);
	return 0;
}

void inflight_exit(struct inflight *f)
{
	free_percpu(f->cpu);
}

/*
 * What has left is summed first: a reference that moves between CPUs while we sum can then
 * make the sums differ, but never make them equal while another one is held.
 */
static bool inflight_idle(struct inflight *f, unsigned int epoch)
{
	unsigned long left = 0, entered = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		left += READ_ONCE(per_cpu_ptr(f->cpu, cpu)->left[epoch]);
	/* Pairs with the barriers in inflight_enter() and inflight_leave(). */
	smp_mb();
	for_each_possible_cpu(cpu)
		entered += READ_ONCE(per_cpu_ptr(f->cpu, cpu)->entered[epoch]);
	return left == entered;
}

static void inflight_wait(struct inflight *f, unsigned int epoch)
{
	unsigned long us = 20;

	while (!inflight_idle(f, epoch)) {
		usleep_range(us, us * 2);
		us = min(us * 2, 2000UL);
	}
}

/*
 * inflight_drain - wait until all references that were taken before are dropped
 *
 * The idle epoch is waited for as well: a reader that read the epoch long ago may have
 * entered it only now, and would else be missed by the drain after the next.
 */
void inflight_drain(struct inflight *f)
{
	unsigned int old;

	mutex_lock(&f->mutex);
	old = f->epoch & 1;
	/* Entries changed by the caller are seen by whoever is not counted below. */
	smp_mb();
	inflight_wait(f, old ^ 1);
	WRITE_ONCE(f->epoch, f->epoch + 1);
	/* Who still enters the old epoch read it before this. */
	smp_mb();
	inflight_wait(f, old);
	/* The caller frees and reuses only after the last reference was seen dropped. */
	smp_mb();
	mutex_unlock(&f->mutex);
}
