/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * DOC: references of I/O in flight
 *
 * A bio takes a reference before it reads a map entry or the cut counter, and drops it, on
 * whatever CPU, when it has completed. drain() returns when every reference that was taken
 * before it was called has been dropped; references taken meanwhile do not delay it.
 *
 * It is SRCU's algorithm with the two counters that let sums be taken without a lock: what is
 * entered and what has left are counted apart, each on the CPU where it happens. Taking and
 * dropping cost a per-CPU increment and a barrier.
 */
#ifndef DEDUP_INFLIGHT_H
#define DEDUP_INFLIGHT_H

#include <linux/mutex.h>
#include <linux/percpu.h>

struct inflight_cpu {
	unsigned long entered[2];
	unsigned long left[2];
};

struct inflight {
	struct inflight_cpu __percpu *cpu;
	unsigned int epoch;
	struct mutex mutex;
};

int inflight_init(struct inflight *f);
void inflight_exit(struct inflight *f);
void inflight_drain(struct inflight *f);

/* Returns the epoch to drop it with. */
static inline unsigned int inflight_enter(struct inflight *f)
{
	unsigned int epoch = READ_ONCE(f->epoch) & 1;

	this_cpu_inc(f->cpu->entered[epoch]);
	/*
	 * Pairs with the barrier before the sums in inflight_idle(): either the drainer sees
	 * this reference, or what follows sees the entries that the drainer changed before.
	 */
	smp_mb();
	return epoch;
}

static inline void inflight_leave(struct inflight *f, unsigned int epoch)
{
	/* What was done under the reference is done before the drainer sees it dropped. */
	smp_mb();
	this_cpu_inc(f->cpu->left[epoch]);
}

#endif
