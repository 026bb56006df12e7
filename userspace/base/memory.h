/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How this process's memory is given back to the kernel. */
#ifndef VMDEDUP_BASE_MEMORY_H
#define VMDEDUP_BASE_MEMORY_H

#define MEMORY_KEEP (64U << 20) /* a daemon's: what it may have on its way to or from the network */

/* For programs through which blocks come and go by the thousand, ZeroMQ's copies of them too: memory
 * that was freed stays with the process, up to @bytes at a heap's end, instead of being unmapped, mapped
 * and filled with zeros for each. First in main(). */
void memory_keep(unsigned int bytes);

#endif
