// SPDX-License-Identifier: GPL-2.0-or-later
#include <malloc.h>

#include "base/memory.h"

#define OWN (32 << 20) /* larger pieces have a mapping of their own: glibc allows no more */

void memory_keep(unsigned int bytes)
{
	mallopt(M_MMAP_THRESHOLD, OWN);
	mallopt(M_TRIM_THRESHOLD, (int)bytes);
}
