// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The meta server's core under hostile requests. The input is requests, each a little-endian 16-bit
 * length and a packed Request, then a byte: how many of the payload frames that follow, each behind
 * its length, are its own. All run as one batch on a real store; instead of the commit the counts
 * are looked at and everything is rolled back, so that every input begins with the same cluster.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "meta/core.h"
#include "meta/server.h"

#define MAX_CALLS  32
#define MAX_FRAMES 4

static const char *const invariants[] = {
	"SELECT count(*) FROM nodes WHERE (count = 0) <> EXISTS (SELECT 1 FROM dying WHERE "
	"dying.hash = nodes.hash AND dying.domain = nodes.domain)",
	"SELECT count(*) FROM nodes WHERE NOT EXISTS (SELECT 1 FROM node_data WHERE "
	"node_data.hash = nodes.hash AND node_data.domain = nodes.domain)",
	"SELECT count(*) FROM blocks WHERE count > 0 AND condemned > 0",
	"SELECT (SELECT count(*) FROM nodes) <> (SELECT sum(nodes) FROM totals)",
	"SELECT (SELECT count(*) FROM blocks WHERE count > 0) <> (SELECT sum(blocks) FROM totals)",
	"SELECT count(*) FROM images WHERE removed = 0 AND root <> zeroblob(32) AND NOT EXISTS "
	"(SELECT 1 FROM nodes WHERE hash = root AND count > 0)",
	"SELECT count(*) FROM (SELECT image FROM leases WHERE state = 0 GROUP BY image "
	"HAVING count(*) > 1)",
};

struct rig {
	char dir[64], path[96];
	struct meta m;
	struct meta_env env;
	struct store_ops ops;
	uint64_t numbers;
};

static uint64_t fixed_time(void *ctx)
{
	return 1000000;
}

/* Ids are guessable here, so that seeds can name them. */
static int fixed_random(void *ctx, void *buf, size_t len)
{
	struct rig *rig = ctx;

	memset(buf, 0, len);
	((uint8_t *)buf)[0] = (uint8_t)++rig->numbers;
	return 0;
}

static int no_commit(struct store *s, struct error *err)
{
	int64_t wrong;
	size_t i;

	for (i = 0; i < sizeof(invariants) / sizeof(invariants[0]); i++) {
		FUZZ_CHECK(store_int_vals(s, err, &wrong, invariants[i], NULL, 0) == 1);
		if (wrong)
			fprintf(stderr, "%s\n", invariants[i]);
		FUZZ_CHECK(!wrong);
	}
	s->ops->rollback(s);
	return 0;
}

static void remove_rig(struct rig *rig)
{
	static const char *const suffix[] = { "", "-wal", "-shm", "-lock" };
	char path[128];
	size_t i;

	meta_end(&rig->m);
	store_close(rig->m.store);
	for (i = 0; i < sizeof(suffix) / sizeof(suffix[0]); i++) {
		snprintf(path, sizeof(path), "%s%s", rig->path, suffix[i]);
		unlink(path);
	}
	rmdir(rig->dir);
}

/* A run is some milliseconds: the usual number of them would take minutes. */
__attribute__((constructor)) static void fewer_runs(void)
{
	setenv("FUZZ_RUNS", "2000", 0);
}

/* One store for the life of the process. */
static struct rig *rig_get(void)
{
	static struct rig rig;
	struct meta_init init = { .name = "fuzz", .block_shift = 12, .replicas = 1,
				  .min_copies = 1 };
	struct error err = { 0 };

	if (rig.m.store)
		return &rig;
	strcpy(rig.dir, "/tmp/vmdedup-fuzz.XXXXXX");
	FUZZ_CHECK(mkdtemp(rig.dir));
	snprintf(rig.path, sizeof(rig.path), "%s/meta", rig.dir);
	FUZZ_CHECK(!meta_store_init(rig.path, &init, &err));
	FUZZ_CHECK(!store_open(&rig.m.store, rig.path, &err));
	rig.env = (struct meta_env){ .wall_s = fixed_time, .mono_ns = fixed_time,
				     .random = fixed_random, .ctx = &rig };
	rig.m.env = &rig.env;
	rig.ops = *rig.m.store->ops;
	rig.ops.commit = no_commit;
	rig.m.store->ops = &rig.ops;
	return &rig;
}

__attribute__((destructor)) static void clean_up(void)
{
	remove_rig(rig_get());
}

static size_t take(const uint8_t **data, size_t *size, const uint8_t **out)
{
	size_t len;

	if (*size < 2)
		return 0;
	len = (size_t)(*data)[0] | (size_t)(*data)[1] << 8;
	*data += 2;
	*size -= 2;
	if (len > *size)
		len = *size;
	*out = *data;
	*data += len;
	*size -= len;
	return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct meta_bytes frames[MAX_CALLS][MAX_FRAMES];
	struct meta_call calls[MAX_CALLS];
	Vmdedup__Request *reqs[MAX_CALLS];
	struct rig *rig = rig_get();
	struct arena arena = { 0 };
	const uint8_t *bytes = NULL;
	size_t nr = 0, i, n, len;

	rig->numbers = 0;
	while (nr < MAX_CALLS && (len = take(&data, &size, &bytes))) {
		reqs[nr] = vmdedup__request__unpack(NULL, len, bytes);
		n = size ? *data % (MAX_FRAMES + 1) : 0;
		if (size) {
			data++;
			size--;
		}
		for (i = 0; i < n; i++) {
			bytes = (const uint8_t *)"";
			frames[nr][i].len = take(&data, &size, &bytes);
			frames[nr][i].data = bytes;
		}
		if (!reqs[nr])
			continue;
		calls[nr] = (struct meta_call){ .m = &rig->m, .arena = &arena, .req = reqs[nr],
						.frames = frames[nr], .nr_frames = n };
		nr++;
	}
	meta_batch(&rig->m, calls, nr);
	/* The store itself must never be what fails. */
	for (i = 0; i < nr; i++) {
		FUZZ_CHECK(calls[i].reply.error >= 0);
		FUZZ_CHECK(calls[i].reply.error != EUCLEAN && calls[i].reply.error != EIO);
		FUZZ_CHECK(!calls[i].reply.error || *calls[i].reply.error_text);
		vmdedup__request__free_unpacked(reqs[i], NULL);
	}
	meta_end(&rig->m);
	arena_free(&arena);
	return 0;
}

/* ---- seeds: the life of an image ---- */

struct writer {
	uint8_t *out;
	size_t room, len;
	uint64_t sequence;
};

static void put(struct writer *w, const void *p, size_t len)
{
	FUZZ_CHECK(w->len + len + 2 <= w->room);
	w->out[w->len++] = (uint8_t)len;
	w->out[w->len++] = (uint8_t)(len >> 8);
	memcpy(w->out + w->len, p, len);
	w->len += len;
}

static void request(struct writer *w, Vmdedup__Request *req, const void *frame, size_t len)
{
	Vmdedup__Mutation mut = VMDEDUP__MUTATION__INIT;
	uint8_t packed[8192];
	size_t n;

	mut.session = 1; /* the first number that fixed_random() gives */
	mut.sequence = ++w->sequence;
	req->mutation = w->sequence > 1 ? &mut : NULL;
	mut.sequence--;
	n = vmdedup__request__get_packed_size(req);
	FUZZ_CHECK(n <= sizeof(packed));
	vmdedup__request__pack(req, packed);
	put(w, packed, n);
	w->out[w->len++] = frame != NULL;
	if (frame)
		put(w, frame, len);
}

#define REQUEST(field_, TYPE, type_, ...)                                          \
	do {                                                                       \
		Vmdedup__Request req_ = VMDEDUP__REQUEST__INIT;                    \
		Vmdedup__##TYPE body_;                                             \
		vmdedup__##type_##__init(&body_);                                  \
		req_.body_case = VMDEDUP__REQUEST__BODY_##field_;                  \
		req_.type_ = &body_;                                               \
		__VA_ARGS__;                                                       \
		request(w, &req_, frame, frame_len);                               \
		frame = NULL;                                                      \
	} while (0)

/* Blocks are vouched for by nobody here: a leaf of them is refused, which is one more path. */
static size_t node_of(uint8_t bytes[RECIPE_NODE_MAX], struct fp *hash)
{
	struct recipe_node node = { .block_shift = 12, .count = 2 };
	size_t len;

	node.entries[0].b[0] = 1;
	len = recipe_node_encode(&node, bytes);
	recipe_node_hash(bytes, len, hash);
	return len;
}

static void life(struct writer *w, bool leased)
{
	uint8_t bytes[RECIPE_NODE_MAX], uuid[16] = { 3 }, zero[32] = { 0 }, nonce[16] = { 9 };
	const void *frame = NULL;
	size_t frame_len = 0;
	struct fp hash;

	uuid[6] = 0x40; /* what image_insert() makes of the third number */
	uuid[8] = 0x80;
	REQUEST(SESSION_OPEN, SessionOpen, session_open,
		body_.nonce = ((ProtobufCBinaryData){ 16, nonce }));
	REQUEST(PUSH_BEGIN, PushBegin, push_begin, body_.name = "vm"; body_.size = 8192);
	frame_len = node_of(bytes, &hash);
	frame = bytes;
	REQUEST(PUSH_PART, PushPart, push_part, body_.push = 2;
		body_.node_hashes = ((ProtobufCBinaryData){ 32, hash.b }));
	REQUEST(PUSH_COMMIT, PushCommit, push_commit, body_.push = 2;
		body_.root = ((ProtobufCBinaryData){ 32, zero }));
	REQUEST(IMAGE_CLONE, ImageClone, image_clone, body_.source = "vm"; body_.name = "c");
	REQUEST(SNAPSHOT, Snapshot, snapshot, body_.name = "vm"; body_.label = "s");
	if (leased) {
		REQUEST(LEASE_TAKE, LeaseTake, lease_take, body_.host = "h";
			body_.image = ((ProtobufCBinaryData){ 16, uuid });
			body_.cache = ((ProtobufCBinaryData){ 16, nonce }));
		REQUEST(PUSH_BEGIN, PushBegin, push_begin, body_.lease_epoch = 1; body_.cut = 5;
			body_.make_version = true;
			body_.image = ((ProtobufCBinaryData){ 16, uuid });
			body_.parent_root = ((ProtobufCBinaryData){ 32, zero }));
		REQUEST(PUSH_COMMIT, PushCommit, push_commit, body_.push = 5;
			body_.root = ((ProtobufCBinaryData){ 32, zero }));
		REQUEST(LEASE_BREAK, LeaseBreak, lease_break, body_.epoch = 1;
			body_.image = ((ProtobufCBinaryData){ 16, uuid }));
		REQUEST(LEASE_RELEASE, LeaseRelease, lease_release, body_.epoch = 1;
			body_.image = ((ProtobufCBinaryData){ 16, uuid });
			body_.cache = ((ProtobufCBinaryData){ 16, nonce }));
	}
	REQUEST(ROLLBACK, Rollback, rollback, body_.name = "vm"; body_.version = 1);
	REQUEST(IMAGE_RENAME, ImageRename, image_rename, body_.name = "c"; body_.new_name = "d");
	REQUEST(IMAGE_REMOVE, ImageRemove, image_remove, body_.name = "vm");
}

static void questions(struct writer *w)
{
	uint8_t fps[64] = { 0, 1 }, uuid[16] = { 7 };
	const void *frame = NULL;
	size_t frame_len = 0;

	REQUEST(SERVER_JOIN, ServerJoin, server_join, body_.endpoint = "tcp://127.0.0.1:1";
		body_.capacity = 1 << 30; body_.host = "h"; body_.incarnation = 1;
		body_.disk = ((ProtobufCBinaryData){ 16, uuid }));
	w->sequence = 0; /* none of these needs a session */
	REQUEST(CLUSTER_INFO, ClusterInfo, cluster_info, (void)0);
	w->sequence = 0;
	REQUEST(MAP_GET, MapGet, map_get, (void)0);
	w->sequence = 0;
	REQUEST(IMAGE_LIST, ImageList, image_list, body_.prefix = "v"; body_.limit = 3);
	w->sequence = 0;
	REQUEST(LEASE_LIST, LeaseList, lease_list,
		body_.after = "00000000-0000-0000-0000-000000000001/3");
	w->sequence = 0;
	REQUEST(NODE_GET, NodeGet, node_get, body_.hashes = ((ProtobufCBinaryData){ 64, fps }));
	w->sequence = 0;
	REQUEST(GC_STEP, GcStep, gc_step, body_.now = true);
	w->sequence = 0;
	REQUEST(GC_SELECT, GcSelect, gc_select,
		body_.fingerprints = ((ProtobufCBinaryData){ 32, fps }));
	w->sequence = 0;
	REQUEST(GC_FORGET, GcForget, gc_forget,
		body_.fingerprints = ((ProtobufCBinaryData){ 32, fps }));
	w->sequence = 0;
	REQUEST(CHECK_STEP, CheckStep, check_step, body_.budget = 5);
}

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	struct writer w = { .out = out, .room = room };

	if (n > 2)
		return 0;
	if (n == 2)
		questions(&w);
	else
		life(&w, n == 1);
	return w.len;
}
