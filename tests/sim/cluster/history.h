/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Histories of a storage cluster in simulated time: a meta server with its governor, data servers, writers
 * and a collector, all of it the daemons' and the client library's own code, with real SQLite, LMDB and
 * lumps; simulated are threads, time, random numbers and the network (threads.h), and SQLite's files
 * are in memory (files.c).
 *
 * Machines crash, freeze, are cut off, drained, and get yesterday's disk or an empty one; messages are
 * lost, late and doubled. What must hold after every step, and in the end, is in watch.c.
 */
#ifndef VMDEDUP_SIM_HISTORY_H
#define VMDEDUP_SIM_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct history_options {
	uint64_t seed;
	const char *dir; /* an empty folder of its own */
	bool trace;
	bool hard; /* disks are put back from copies, too, and a JOIN comes late */
};

struct history_result {
	unsigned int commits, removed, crashes, damages, anew, collections, checks;
	uint64_t sim_ns, digest; /* of all that happened */
};

/* Makes what all histories begin with, once, before any of them; @dir is an empty folder for it, not used any
 * more when this returns. False: @what has a sentence. */
bool histories_begin(const char *dir, char *what, size_t len);

/* Runs in a process of its own, for what a crash leaves behind stays in memory. False: @what has a
 * sentence that says what went wrong. */
bool history_run(const struct history_options *o, struct history_result *r, char *what, size_t len);

#endif
