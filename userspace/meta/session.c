// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Exactly once: a mutation's result is stored under (session, sequence) in the mutation's own
 * transaction, so that a retry, after whatever failure, gets the first result byte for byte.
 */
#include "meta/core.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#define DIGEST_SIZE 32

struct session {
	uint64_t sequence;
	uint8_t digest[DIGEST_SIZE];
};

/* What makes two requests the same: all of the header but its id. Payload is named there by hash.
 */
static int request_digest(struct meta_call *c, uint8_t digest[DIGEST_SIZE])
{
	Vmdedup__Request req = *c->req;
	unsigned int len = 0;
	uint8_t *packed;
	size_t size;

	req.id = 0;
	size = vmdedup__request__get_packed_size(&req);
	packed = call_alloc(c, size + 1);
	if (!packed)
		return call_nomem(c);
	vmdedup__request__pack(&req, packed);
	if (!EVP_Digest(packed, size, digest, &len, EVP_sha256(), NULL))
		return call_nomem(c);
	return 0;
}

static int answer_again(struct meta_call *c, const void *packed, size_t len)
{
	ProtobufCAllocator alloc = arena_protobuf(c->arena);
	Vmdedup__Reply *reply = vmdedup__reply__unpack(&alloc, len, packed);

	if (!reply)
		return store_fail(call_store(c), &c->err, -EUCLEAN,
				  "the stored result of this mutation is damaged");
	c->reply = *reply;
	/* An answer vouches for what was stored, so it may be given only by a transaction that is
	 * as durable as the first: it writes. */
	return store_exec(call_store(c), &c->err, "UPDATE sessions SET used_s = ?2 WHERE id = ?1",
			  V_INT(c->req->mutation->session), V_INT(c->m->params.age_s)) < 0 ?
		       c->err.code : 0;
}

static int store_result(struct meta_call *c, const uint8_t digest[DIGEST_SIZE])
{
	const Vmdedup__Mutation *mut = c->req->mutation;
	size_t size = vmdedup__reply__get_packed_size(&c->reply);
	uint8_t *packed = call_alloc(c, size + 1);
	int64_t n;

	if (!packed)
		return store_fail(call_store(c), &c->err, -ENOMEM,
				  "the meta server is out of memory");
	vmdedup__reply__pack(&c->reply, packed);
	n = store_exec(call_store(c), &c->err,
		       "UPDATE sessions SET sequence = ?2, digest = ?3, result = ?4, used_s = ?5 "
		       "WHERE id = ?1", V_INT(mut->session), V_INT(mut->sequence),
		       V_BLOB(digest, DIGEST_SIZE), V_BLOB(packed, size),
		       V_INT(c->m->params.age_s));
	return n < 0 ? (int)n : 0;
}

/* 1: run it; 0: answered; negative: refused or failed. */
static int check_sequence(struct meta_call *c, const uint8_t digest[DIGEST_SIZE])
{
	const Vmdedup__Mutation *mut = c->req->mutation;
	struct rows rows CLEANUP_ROWS = { 0 };
	uint8_t first[DIGEST_SIZE];
	const void *result;
	uint64_t sequence;
	size_t len;
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT sequence, digest, result FROM sessions WHERE id = ?1",
			V_INT(mut->session));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -EKEYEXPIRED,
				  "session %llu is not known or has expired: open a new one",
				  (unsigned long long)mut->session);
	sequence = (uint64_t)rows_int(&rows, 0);
	if (mut->sequence == sequence + 1)
		return 1;
	if (mut->sequence < sequence)
		return call_error(c, -ESTALE,
				  "sequence %llu of this session is over, the last one is %llu",
				  (unsigned long long)mut->sequence, (unsigned long long)sequence);
	if (mut->sequence > sequence)
		return call_error(c, -EINVAL,
				  "sequence %llu leaves a gap, the last one is %llu",
				  (unsigned long long)mut->sequence, (unsigned long long)sequence);
	r = rows_bytes(&rows, 1, first, sizeof(first), &c->err);
	if (r)
		return r;
	if (memcmp(first, digest, sizeof(first)))
		return call_error(c, -EINVAL, "sequence %llu was used for another request",
				  (unsigned long long)mut->sequence);
	result = rows_blob(&rows, 2, &len);
	return answer_again(c, result, len);
}

static int give_error(struct meta_call *c)
{
	return c->err.code;
}

static int refuse(struct meta_call *c)
{
	int r = call_run(c, give_error);

	c->reply.not_done = true;
	return r;
}

int session_mutate(struct meta_call *c, meta_handler fn)
{
	const Vmdedup__Mutation *mut = c->req->mutation;
	uint8_t digest[DIGEST_SIZE];
	int r;

	if (!mut || !mut->session || !mut->sequence || mut->sequence > INT64_MAX) {
		call_error(c, -EINVAL, "a request that changes something needs a session and a "
				       "sequence from 1 up");
		return refuse(c);
	}
	r = request_digest(c, digest);
	if (!r)
		r = check_sequence(c, digest);
	if (call_store(c)->failed)
		return call_store(c)->failed;
	if (!r)
		return 0;
	if (r < 0)
		return refuse(c);
	r = call_run(c, fn);
	/* Out of memory is no result: the client tries again with the same sequence. */
	if (r)
		return r;
	if (c->reply.error == ENOMEM || c->reply.error == EIO) {
		c->reply.not_done = true;
		return 0;
	}
	return store_result(c, digest);
}

/* Room for one more: the longest idle session goes, if it is idle long enough. */
static int make_room(struct meta_call *c)
{
	struct store *s = call_store(c);
	int64_t n = 0, gone;
	int r;

	r = store_int(s, &c->err, &n, "SELECT count(*) FROM sessions");
	if (r < 0 || n < META_MAX_SESSIONS)
		return r < 0 ? r : 0;
	gone = store_exec(s, &c->err,
			  "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE "
			  "used_s < ?1 ORDER BY used_s LIMIT 64)",
			  V_INT((int64_t)c->m->params.age_s - META_SESSION_MIN_S));
	if (gone < 0)
		return (int)gone;
	return gone ? 0 : call_error(c, -EBUSY, "%d sessions are open and in use; try later",
				     META_MAX_SESSIONS);
}

int session_open(struct meta_call *c)
{
	const Vmdedup__SessionOpen *req = c->req->session_open;
	Vmdedup__SessionOpenReply *reply = call_alloc(c, sizeof(*reply));
	struct store *s = call_store(c);
	struct uuid nonce;
	int64_t id = 0, n;
	int r;

	if (!reply)
		return call_nomem(c);
	r = call_get_uuid(c, &req->nonce, "the session's nonce", &nonce) ?:
	    call_check_text(c, req->name, "the session's name");
	if (r)
		return r;
	r = store_int(s, &c->err, &id, "SELECT id FROM sessions WHERE nonce = ?1", V_UUID(&nonce));
	if (!r) {
		r = make_room(c) ?: call_random_id(c, (uint64_t *)&id);
		if (r)
			return r;
		n = store_exec(s, &c->err,
			       "INSERT INTO sessions (id, nonce, name, sequence, digest, result, "
			       "used_s) VALUES (?1, ?2, ?3, 0, ?4, ?4, ?5)", V_INT(id),
			       V_UUID(&nonce), V_TEXT(req->name), V_BLOB("", 0),
			       V_INT(c->m->params.age_s));
		r = n < 0 ? (int)n : 0;
	}
	if (r < 0)
		return r;
	vmdedup__session_open_reply__init(reply);
	reply->session = (uint64_t)id;
	c->reply.body_case = VMDEDUP__REPLY__BODY_SESSION_OPEN;
	c->reply.session_open = reply;
	return 0;
}

int session_expire(struct meta *m, struct error *err)
{
	int64_t n = store_exec(m->store, err,
			       "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE "
			       "used_s < ?1 LIMIT 256)",
			       V_INT((int64_t)m->params.age_s - META_SESSION_IDLE_S));

	return n < 0 ? (int)n : 0;
}
