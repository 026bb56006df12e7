/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints, in the system dm_dedup. None lies on the hit path. Documentation/dm-dedup.rst
 * lists them.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM dm_dedup

#if !defined(DEDUP_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define DEDUP_TRACE_H

#include <linux/tracepoint.h>

struct bio;
struct cache;
struct dm_dedup_publish;
struct volume;

/* A block is asked for. */
TRACE_EVENT(dedup_miss_start,
	TP_PROTO(struct volume *vol, u64 block, u64 cookie),
	TP_ARGS(vol, block, cookie),
	TP_STRUCT__entry(
		__field(u64, volume)
		__field(u64, block)
		__field(u64, cookie)
	),
	TP_fast_assign(
		__entry->volume = vol->rec.id;
		__entry->block = block;
		__entry->cookie = cookie;
	),
	TP_printk("volume=%llu block=%llu cookie=%llu", __entry->volume, __entry->block,
		  __entry->cookie)
);

/* It has come (@answered), or nobody waits for it any more. */
TRACE_EVENT(dedup_miss_end,
	TP_PROTO(struct volume *vol, u64 block, u64 cookie, u64 us, bool answered),
	TP_ARGS(vol, block, cookie, us, answered),
	TP_STRUCT__entry(
		__field(u64, volume)
		__field(u64, block)
		__field(u64, cookie)
		__field(u64, us)
		__field(bool, answered)
	),
	TP_fast_assign(
		__entry->volume = vol->rec.id;
		__entry->block = block;
		__entry->cookie = cookie;
		__entry->us = us;
		__entry->answered = answered;
	),
	TP_printk("volume=%llu block=%llu cookie=%llu us=%llu answered=%d", __entry->volume,
		  __entry->block, __entry->cookie, __entry->us, __entry->answered)
);

/* A bio waits, for @what: a block, a slot, or a place among the misses. */
TRACE_EVENT(dedup_park,
	TP_PROTO(struct volume *vol, struct bio *bio, const char *what),
	TP_ARGS(vol, bio, what),
	TP_STRUCT__entry(
		__field(u64, volume)
		__field(u64, sector)
		__field(u32, sectors)
		__field(u32, op)
		__array(char, what, 16)
	),
	TP_fast_assign(
		__entry->volume = vol->rec.id;
		__entry->sector = bio->bi_iter.bi_sector;
		__entry->sectors = bio_sectors(bio);
		__entry->op = (__force u32)bio_op(bio);
		strscpy(__entry->what, what, sizeof(__entry->what));
	),
	TP_printk("volume=%llu sector=%llu sectors=%u op=%u waits_for=%s", __entry->volume,
		  __entry->sector, __entry->sectors, __entry->op, __entry->what)
);

/* An entry of PUBLISH was applied or not. */
TRACE_EVENT(dedup_publish,
	TP_PROTO(struct volume *vol, const struct dm_dedup_publish *e, int result),
	TP_ARGS(vol, e, result),
	TP_STRUCT__entry(
		__field(u64, volume)
		__field(u64, block)
		__field(u64, cookie)
		__field(u64, slot)
		__field(u32, source)
		__field(int, result)
	),
	TP_fast_assign(
		__entry->volume = vol->rec.id;
		__entry->block = e->block;
		__entry->cookie = e->cookie;
		__entry->slot = e->slot;
		__entry->source = e->source;
		__entry->result = result;
	),
	TP_printk("volume=%llu block=%llu cookie=%llu slot=%llu source=%u result=%d",
		  __entry->volume, __entry->block, __entry->cookie, __entry->slot,
		  __entry->source, __entry->result)
);

DECLARE_EVENT_CLASS(dedup_volume_call,
	TP_PROTO(struct volume *vol, u64 cut, int result),
	TP_ARGS(vol, cut, result),
	TP_STRUCT__entry(
		__field(u64, volume)
		__field(u64, epoch)
		__field(u64, cut)
		__field(int, result)
	),
	TP_fast_assign(
		__entry->volume = vol->rec.id;
		__entry->epoch = vol->rec.lease_epoch;
		__entry->cut = cut;
		__entry->result = result;
	),
	TP_printk("volume=%llu epoch=%llu cut=%llu result=%d", __entry->volume, __entry->epoch,
		  __entry->cut, __entry->result)
);

DEFINE_EVENT(dedup_volume_call, dedup_cut,
	TP_PROTO(struct volume *vol, u64 cut, int result),
	TP_ARGS(vol, cut, result)
);

DEFINE_EVENT(dedup_volume_call, dedup_commit,
	TP_PROTO(struct volume *vol, u64 cut, int result),
	TP_ARGS(vol, cut, result)
);

DEFINE_EVENT(dedup_volume_call, dedup_fence,
	TP_PROTO(struct volume *vol, u64 cut, int result),
	TP_ARGS(vol, cut, result)
);

/* A CLEAN slot is given up to make room. */
TRACE_EVENT(dedup_evict,
	TP_PROTO(u32 slot, u64 seq),
	TP_ARGS(slot, seq),
	TP_STRUCT__entry(
		__field(u32, slot)
		__field(u64, seq)
	),
	TP_fast_assign(
		__entry->slot = slot;
		__entry->seq = seq;
	),
	TP_printk("slot=%u seq=%llu", __entry->slot, __entry->seq)
);

/* One append to the journal, with its PREFLUSH and FUA. */
TRACE_EVENT(dedup_append,
	TP_PROTO(u64 commit, u32 changes, u64 us, int result),
	TP_ARGS(commit, changes, us, result),
	TP_STRUCT__entry(
		__field(u64, commit)
		__field(u32, changes)
		__field(u64, us)
		__field(int, result)
	),
	TP_fast_assign(
		__entry->commit = commit;
		__entry->changes = changes;
		__entry->us = us;
		__entry->result = result;
	),
	TP_printk("commit=%llu changes=%u us=%llu result=%d", __entry->commit, __entry->changes,
		  __entry->us, __entry->result)
);

/* The cache has got worse: ro, failed. */
TRACE_EVENT(dedup_mode,
	TP_PROTO(struct cache *c, const char *mode),
	TP_ARGS(c, mode),
	TP_STRUCT__entry(
		__array(u8, uuid, DEDUP_UUID_BYTES)
		__field(int, error)
		__array(char, mode, 16)
	),
	TP_fast_assign(
		memcpy(__entry->uuid, c->info->cache_uuid, DEDUP_UUID_BYTES);
		__entry->error = c->error;
		strscpy(__entry->mode, mode, sizeof(__entry->mode));
	),
	TP_printk("cache=%pUb mode=%s error=%d", __entry->uuid, __entry->mode, __entry->error)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
