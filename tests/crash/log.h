/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The log of all that reaches a disk (tests/crash/disk.c), in the order in which it does.
 *
 * A disk with a volatile cache promises this, and no more: a write is durable when a flush has
 * completed that arrived after the write had completed. So the log has both ends of each.
 */
#ifndef VMDEDUP_TESTS_CRASH_LOG_H
#define VMDEDUP_TESTS_CRASH_LOG_H

#include <stdint.h>

#define LOG_MAGIC 0x676f6c2d6b736964ULL /* "disk-log" */

enum log_kind {
	LOG_WRITE = 1,	/* arrived; its data follows */
	LOG_WRITTEN,	/* write @id is reported complete */
	LOG_FLUSH,	/* arrived */
	LOG_FLUSHED,	/* flush @id is reported complete */
	LOG_ACK,	/* arrived at the disk for acknowledgements; its data follows */
	LOG_KILLED,	/* the machine was killed: the last entry */
};

/* The log is LOG_MAGIC, and these. */
struct log_entry {
	uint32_t kind;
	uint32_t len;	 /* bytes of data */
	uint64_t id;	 /* of requests, from 1 on, in the order in which they arrived */
	uint64_t offset; /* bytes */
};

#endif
