/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_BASE_CLOCK_H
#define VMDEDUP_BASE_CLOCK_H

#include <pthread.h>
#include <stdint.h>

uint64_t clock_mono_ns(void); /* CLOCK_MONOTONIC */
uint64_t clock_wall_ms(void); /* milliseconds since 1970, as below */
uint64_t clock_wall_s(void);  /* seconds since 1970: jumps; for people to read, never for waits */

/* pthread_cond_wait() until clock_mono_ns() is @until_ns: 0, or ETIMEDOUT. */
int clock_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns);

#endif
