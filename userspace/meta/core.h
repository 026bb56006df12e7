/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The meta server's core: requests in, replies out, a store below, and the world (clock, random
 * numbers) through a table. It knows no sockets. One thread runs a core.
 */
#ifndef VMDEDUP_META_CORE_H
#define VMDEDUP_META_CORE_H

#include "meta/store.h"
#include "proto/limits.h"
#include "proto/receipt.h"
#include "proto/recipe.h"
#include "proto/vmdedup.pb-c.h"

/* Bounds of what one meta server holds. */
#define META_MAX_SESSIONS   65536	/* the longest idle one makes room */
#define META_SESSION_IDLE_S 604800	/* seconds of service after which a session ends */
#define META_SESSION_MIN_S  600		/* a session used since then is never thrown out */
#define META_MAX_PUSHES	    4096	/* open ones */
#define META_PUSH_IDLE_S    900		/* seconds of service after which a push is abandoned: a client
					 * that goes on says so every minute */
#ifndef META_MAX_SERVERS
#define META_MAX_SERVERS    1024
#endif
#define META_MAX_TEXT	    255		/* bytes of labels, hosts, endpoints */
#define META_MAX_REDO	    8192	/* fingerprints of one list to redo */
#define META_MAX_CONDEMN    16384	/* blocks of one step of a collection, or a few more */

enum server_state {
	SERVER_UP = 0, SERVER_SUSPECT = 1, SERVER_DOWN = 2, SERVER_DRAINING = 3,
	SERVER_OUT = 4, SERVER_STALE = 5,
};
enum replica_state { REPLICA_CURRENT = 0, REPLICA_STALE = 1, REPLICA_LEAVING = 2 };
enum lease_state { LEASE_ACTIVE = 0, LEASE_BROKEN = 1, LEASE_READER = 2 };
enum push_state { PUSH_OPEN = 0, PUSH_OVER = 1 };

/* The world. */
struct meta_env {
	uint64_t (*wall_s)(void *ctx);
	uint64_t (*mono_ns)(void *ctx);
	int (*random)(void *ctx, void *buf, size_t len); /* 0 or -EIO */
	void *ctx;
};

extern const struct meta_env meta_real_env;

/* The cluster's row, read at the start of each transaction. */
struct meta_params {
	struct uuid uuid;
	struct uuid history;
	bool deletion_suspended; /* since a restore, until a person agrees */
	char name[META_MAX_TEXT + 1];
	enum fp_algorithm algorithm;
	unsigned int block_shift;
	unsigned int replicas;
	unsigned int min_copies;
	uint8_t receipt_key[RECEIPT_KEY_SIZE];
	uint64_t map_version;
	uint64_t members_version;
	uint64_t age_s;
	uint32_t out_after_s;
};

struct meta {
	struct store *store;
	const struct meta_env *env;
	struct meta_params params;
	uint64_t ticked_ns; /* monotonic time of the last look at age_s, */
	uint64_t ticked_age_s; /* and what it was then */
	struct members *members; /* cached, see members.h */
	struct check *check; /* the one under way, or NULL: meta_end() frees it */
	bool may_cascade;   /* a mutation ran since the cascade last found nothing */
	struct meta_totals {
		int64_t nodes, blocks;
	} delta; /* what the open transaction changes in `totals` */
	void (*accused)(void *arg, uint32_t server); /* somebody complains; NULL: nobody listens */
	void *accused_arg;
	bool governs; /* this process is the governor */
	bool defers;  /* others may share the store: what nobody has asked for is the governor's */
};

/* Memory that ends with a batch. alloc zeroes, room does not; NULL only when memory is out. */
struct arena_chunk;
struct arena {
	struct arena_chunk *chunks;
	uint64_t nr_made; /* chunks, ever */
};
void *arena_alloc(struct arena *a, size_t len);
void *arena_room(struct arena *a, size_t len);
char *arena_strdup(struct arena *a, const char *text);
/* With a zero behind, for it may be a text. */
void *arena_memdup(struct arena *a, const void *p, size_t len);
void arena_free(struct arena *a);
/* All that was allocated after the mark is freed, in one go. */
struct arena_mark {
	uint64_t nr_made;
	size_t used;
};
struct arena_mark arena_mark(const struct arena *a);
void arena_release(struct arena *a, struct arena_mark mark);
/* To unpack messages into it, which nobody frees. */
ProtobufCAllocator arena_protobuf(struct arena *a);

struct meta_bytes {
	const void *data;
	size_t len;
};

/* One request and its reply. The caller sets m, arena, req and frames; the reply and what it
 * points to live in the arena, which is one for all calls of a batch. */
struct meta_call {
	struct meta *m;
	struct arena *arena;
	const Vmdedup__Request *req;
	const struct meta_bytes *frames;
	size_t nr_frames;

	Vmdedup__Reply reply;
	struct meta_bytes *out; /* payload of the reply */
	size_t nr_out;
	struct error err;
};

/* Begins a transaction and reads the cluster's row; writes `totals` and commits. */
int meta_begin(struct meta *m, struct error *err);
int meta_commit(struct meta *m, struct error *err);
void meta_rollback(struct meta *m);
/*
 * Runs all calls in one transaction: every reply is true only after this has returned. A call that
 * fails leaves nothing behind and does not disturb the others. Failures of the store end up in
 * replies, never as a stored result; EHOSTDOWN with not_done: the store could not be reached, and
 * whether a mutation is done only its repetition tells, here or at another meta server.
 */
void meta_batch(struct meta *m, struct meta_call *calls, size_t n);
/* Ends what a core holds besides its store. */
void meta_end(struct meta *m);
/* Once in a while: a bounded step of cascades and of expiry. Returns 1 when more waits. */
int meta_tick(struct meta *m, struct error *err);
/* The service clock as of now, then push_expire(). In a transaction. */
int meta_end_idle_pushes(struct meta *m, uint64_t idle_s, struct error *err);
/* Fills a new store with a cluster of @init, in the open transaction. */
struct meta_init;
int meta_fill(struct store *s, const struct meta_env *env, const struct meta_init *init,
	      struct error *err);

/* ---- for handlers ----
 * A handler returns 0 with the reply's body filled in, or a negative errno with call->err's text;
 * then its changes are undone and, in a session, the error is the stored result. Setting
 * reply.error itself and returning 0 keeps the changes. */
typedef int (*meta_handler)(struct meta_call *c);

#define call_store(c) ((c)->m->store)
/* Runs fn so that a failure undoes what it did and becomes the reply. Fails only with the store. */
int call_run(struct meta_call *c, meta_handler fn);
#define call_alloc(c, len) arena_alloc((c)->arena, len)
#define call_room(c, len) arena_room((c)->arena, len)
int call_error(struct meta_call *c, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int call_nomem(struct meta_call *c);
/* A `bytes` field of @len bytes in the arena. */
int call_bytes(struct meta_call *c, ProtobufCBinaryData *out, const void *p, size_t len);
/* A `bytes` field of the request that must be a UUID or a fingerprint: -EINVAL. */
int call_get_uuid(struct meta_call *c, const ProtobufCBinaryData *in, const char *what,
		  struct uuid *out);
int call_get_fp(struct meta_call *c, const ProtobufCBinaryData *in, const char *what,
		struct fp *out);
/* Text of at most META_MAX_TEXT bytes of UTF-8 without control characters: -EINVAL. */
int call_check_text(struct meta_call *c, const char *text, const char *what);
/* A positive random number below 2^63 for an id. */
int call_random_id(struct meta_call *c, uint64_t *id);
static inline uint64_t call_now_s(struct meta_call *c)
{
	return c->m->env->wall_s(c->m->env->ctx);
}

/* session.c: the exactly-once wrapper around @fn, and opening a session. */
int session_mutate(struct meta_call *c, meta_handler fn);
int session_open(struct meta_call *c);
int session_expire(struct meta *m, struct error *err);

/* cluster.c, map.c */
int cluster_info(struct meta_call *c);
/* Also used by a joining server. */
int cluster_domains(struct meta_call *c, Vmdedup__Domain ***out, size_t *n);
int map_get(struct meta_call *c);
int map_server_join(struct meta_call *c);
/* map_version + 1; @members: members_version as well */
int map_bump(struct meta *m, bool members, struct error *err);

/* image.c, version.c */
int image_get(struct meta_call *c);
int image_list(struct meta_call *c);
int image_clone(struct meta_call *c);
int image_remove(struct meta_call *c);
int image_rename(struct meta_call *c);
int image_resize(struct meta_call *c); /* resize.c */
int version_list(struct meta_call *c);
int version_snapshot(struct meta_call *c);
int version_rollback(struct meta_call *c);
int version_remove(struct meta_call *c);

/* lease.c */
int lease_take(struct meta_call *c);
int lease_release(struct meta_call *c);
int lease_break(struct meta_call *c);
int lease_list(struct meta_call *c);
int lease_report(struct meta_call *c);
int lease_handover(struct meta_call *c);

/* push.c, part.c, node_get in nodes.c */
int push_begin(struct meta_call *c);
int push_part(struct meta_call *c);
int push_commit(struct meta_call *c);
int push_abort(struct meta_call *c);
/* Pushes that nobody has continued for @idle_s seconds of service are over. */
int push_expire(struct meta *m, uint64_t idle_s, struct error *err);
int node_get(struct meta_call *c);

/* peers.c, traces.c */
int peers_announce(struct meta_call *c);
int peers_find(struct meta_call *c);
int trace_get(struct meta_call *c);
int trace_put(struct meta_call *c);
/* What a handover gives along, for the next OPEN by the cache; forgotten when its lease ends. */
int hot_list_put(struct meta_call *c, const struct uuid *image, const struct uuid *cache,
		 const ProtobufCBinaryData *blocks);
int hot_list_drop(struct meta_call *c, const struct uuid *image, const struct uuid *cache);

/* collect.c, gc.c, check.c */
int gc_step(struct meta_call *c);
int gc_list(struct meta_call *c);
int gc_select(struct meta_call *c);
int gc_forget(struct meta_call *c);
int gc_block_list(struct meta_call *c);
int gc_deletion_resume(struct meta_call *c);
int check_step(struct meta_call *c);
struct gc_progress {
	uint64_t freed_nodes;
	bool more;
};
/* Gives back at most about @budget nodes' worth of what is over, removed or dying. */
int gc_cascade(struct meta *m, unsigned int budget, struct gc_progress *p, struct error *err);

#endif
