/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The step, of those that agents tell (host_agent.c), at which a process is struck; and the start of a
 * test that does so. */
#ifndef VMDEDUP_TESTS_STRIKE_H
#define VMDEDUP_TESTS_STRIKE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct strike {
	pthread_mutex_t lock; /* guards all below, and what a test keeps with it */
	pthread_cond_t changed;
	bool armed, fired;
	size_t at, break_at;
	const char *break_name; /* instead of a number */
};

/* At the start of a test: its output comes by lines from then on. */
void strike_init(struct strike *s);
/* At the step @at from now on, counted from 0, or at the next one that is called @name. */
void strike_arm(struct strike *s, size_t at, const char *name);
/* An agent is at step @name. True, once: that is the one. Under the lock. */
bool strike_is(struct strike *s, const char *name);
void strike_tell(struct strike *s); /* that something has changed */
bool strike_has_fired(struct strike *s);
bool strike_disarm(struct strike *s); /* true: the step was there */

#endif
