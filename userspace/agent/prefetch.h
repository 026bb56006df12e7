/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Blocks that are had before anyone asks for them.
 *
 * Read-ahead: misses that follow one another make a stream, ahead of which blocks are had, more with
 * each miss, up to PREFETCH_WINDOW_BYTES. A cache that hits tells nobody: the guest's misses on
 * blocks that are on their way are what keeps a stream going.
 *
 * Traces: the order in which a boot first touched an image's blocks is kept by the meta server under
 * the root that the volume was opened with, and so serves every clone of it. The next boot on any
 * host replays it ahead of the guest. What was missed all the same is added to it.
 *
 * All of it waits behind demand (core_impl.h, to_get), holds at most three quarters of the memory
 * for gets, and is given up where demand would be tried again. Part of the core: pure.
 */
#ifndef VMDEDUP_AGENT_PREFETCH_H
#define VMDEDUP_AGENT_PREFETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PREFETCH_WINDOW_BYTES (16U << 20) /* what one peer is asked for at a time */
#define PREFETCH_FIRST	      4	    /* blocks ahead of the second miss in a row */
#define PREFETCH_STREAMS      4	    /* of one volume */
#define PREFETCH_REPLAY	      64    /* blocks of traces under way at a time */
#define TRACE_MAX	      8192  /* blocks */
#define TRACE_MIN	      8	    /* fewer are not worth a row */
#define TRACE_MAX_BYTES	      65536 /* of it on the wire */
#define TRACE_S		      120   /* after the OPEN: what comes later is no boot */

struct agent;
struct volume;
struct fp;
struct uuid;

struct stream {
	uint64_t first, last; /* of its misses */
	uint64_t end;	      /* of what was had ahead */
	uint64_t used;
	uint32_t window;
};

/* What a volume has of all this; zeroed memory is an empty one. */
struct prefetch {
	struct stream streams[PREFETCH_STREAMS];
	uint64_t uses;
	/* the trace that is replayed */
	uint32_t *replay;
	uint32_t nr_replay, next_replay;
	/* what is recorded */
	uint32_t *seen;
	uint32_t nr_seen;
	bool recording, asked;
	uint64_t until_ns;
};

void prefetch_opened(struct agent *a, struct volume *v, const struct fp *root);
void prefetch_missed(struct agent *a, struct volume *v, uint64_t block);
/* The device has gone, or all is forgotten: what was recorded is handed over, or not. */
void prefetch_ended(struct agent *a, struct volume *v, bool keep);
/* There may be room for more. */
void prefetch_more(struct agent *a);
void prefetch_tick(struct agent *a, uint64_t now);
uint64_t prefetch_next_ns(struct agent *a);

/* Numbers of blocks as varints of the zigzagged difference to the one before. Bytes written. */
size_t trace_pack(const uint32_t *blocks, size_t nr, uint8_t *out, size_t room);
/* Hostile input. How many there were; what cannot be read ends it. */
size_t trace_unpack(const uint8_t *in, size_t len, uint64_t nr_blocks, uint32_t *blocks,
		    size_t max);

#endif
