/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_BASE_CLOCK_H
#define VMDEDUP_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_mono_ns(void); /* CLOCK_MONOTONIC */
uint64_t clock_wall_s(void);  /* seconds since 1970 */

#endif
