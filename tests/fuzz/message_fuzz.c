// SPDX-License-Identifier: GPL-2.0-or-later
/* Header frames, as a server and as a client get them, and the receipts inside. */
#include <errno.h>
#include <string.h>

#include "fuzz.h"
#include "net/internal.h"
#include "proto/limits.h"
#include "proto/receipt.h"

static const uint8_t key[RECEIPT_KEY_SIZE] = "a key";

static void check_receipts(size_t n, Vmdedup__Receipt **receipts)
{
	for (size_t i = 0; i < n; i++)
		receipt_is_authentic(receipts[i], key);
}

/* What was decoded encodes to what decodes again, to the same. */
static void check_request(const Vmdedup__Request *req)
{
	size_t len = vmdedup__request__get_packed_size(req);
	uint8_t *a = malloc(len ? len : 1), *b = malloc(len ? len : 1);
	Vmdedup__Request *again;

	FUZZ_CHECK(a && b);
	FUZZ_CHECK(vmdedup__request__pack(req, a) == len);
	if (len <= PROTO_MAX_HEADER && !net_decode_request(a, len, &again, NULL)) {
		FUZZ_CHECK(vmdedup__request__get_packed_size(again) == len);
		vmdedup__request__pack(again, b);
		FUZZ_CHECK(!memcmp(a, b, len));
		vmdedup__request__free_unpacked(again, NULL);
	}
	free(a);
	free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t id = net_peek_id(data, size);
	Vmdedup__Request *req;
	Vmdedup__Reply *reply;
	struct error err;

	if (!net_decode_request(data, size, &req, &err)) {
		FUZZ_CHECK(!id || req->id == id);
		if (req->body_case == VMDEDUP__REQUEST__BODY_PUSH_PART)
			check_receipts(req->push_part->n_receipts, req->push_part->receipts);
		check_request(req);
		vmdedup__request__free_unpacked(req, NULL);
	} else {
		FUZZ_CHECK(err.code == -EPROTO || err.code == -EMSGSIZE);
	}
	if (!net_decode_reply(data, size, &reply, &err)) {
		if (reply->body_case == VMDEDUP__REPLY__BODY_PUT)
			check_receipts(reply->put->n_receipts, reply->put->receipts);
		vmdedup__reply__free_unpacked(reply, NULL);
	}
	return 0;
}

static uint8_t bytes[64 * 32];

static Vmdedup__Receipt *a_receipt(void)
{
	static Vmdedup__Disk disk = VMDEDUP__DISK__INIT, *disks[] = { &disk };
	static Vmdedup__Receipt r = VMDEDUP__RECEIPT__INIT;
	static uint8_t mac[RECEIPT_MAC_SIZE];

	disk.uuid = (ProtobufCBinaryData){ 16, bytes };
	disk.incarnation = 3;
	r.epoch = 300;
	r.n_disks = 1;
	r.disks = disks;
	memset(bytes + 1, 7, sizeof(bytes) - 1);
	r.fingerprints = (ProtobufCBinaryData){ 32, bytes };
	receipt_mac(&r, key, mac);
	r.mac = (ProtobufCBinaryData){ sizeof(mac), mac };
	FUZZ_CHECK(receipt_is_authentic(&r, key));
	return &r;
}

static size_t request_seed(size_t n, Vmdedup__Request *req)
{
	static Vmdedup__Mutation mutation = VMDEDUP__MUTATION__INIT;
	static Vmdedup__Hello hello = VMDEDUP__HELLO__INIT;
	static Vmdedup__PushPart part = VMDEDUP__PUSH_PART__INIT;
	static Vmdedup__PushBegin begin = VMDEDUP__PUSH_BEGIN__INIT;
	static Vmdedup__BlockHead head = VMDEDUP__BLOCK_HEAD__INIT;
	static Vmdedup__BlockHead *heads[] = { &head, &head, &head };
	static Vmdedup__Put put = VMDEDUP__PUT__INIT;
	static Vmdedup__Receipt *receipts[2];

	mutation.session = 1ULL << 40;
	mutation.sequence = 5;
	req->id = 77 + n;
	switch (n) {
	case 0:
		hello.version = 1;
		hello.role = "agent";
		hello.name = "host/1";
		req->body_case = VMDEDUP__REQUEST__BODY_HELLO;
		req->hello = &hello;
		break;
	case 1:
		receipts[0] = receipts[1] = a_receipt();
		req->mutation = &mutation;
		part.push = 9;
		part.node_hashes = (ProtobufCBinaryData){ 64, bytes };
		part.n_receipts = 2;
		part.receipts = receipts;
		req->payload_frames = 2;
		req->body_case = VMDEDUP__REQUEST__BODY_PUSH_PART;
		req->push_part = &part;
		break;
	case 2:
		req->mutation = &mutation;
		begin.name = "web-01";
		begin.size = 1ULL << 35;
		begin.parent_root = (ProtobufCBinaryData){ 32, bytes };
		begin.make_version = true;
		req->body_case = VMDEDUP__REQUEST__BODY_PUSH_BEGIN;
		req->push_begin = &begin;
		break;
	default:
		head.fingerprint = (ProtobufCBinaryData){ 32, bytes };
		head.raw_size = 1 << 18;
		head.codec = VMDEDUP__CODEC__ZSTD;
		head.error = -5;
		put.n_blocks = 3;
		put.blocks = heads;
		req->payload_frames = 3;
		req->body_case = VMDEDUP__REQUEST__BODY_PUT;
		req->put = &put;
	}
	return vmdedup__request__get_packed_size(req);
}

static size_t reply_seed(size_t n, Vmdedup__Reply *reply)
{
	static Vmdedup__Server server = VMDEDUP__SERVER__INIT, *servers[] = { &server, &server };
	static Vmdedup__MapReply map = VMDEDUP__MAP_REPLY__INIT;
	static Vmdedup__ServerJoinReply join = VMDEDUP__SERVER_JOIN_REPLY__INIT;
	static Vmdedup__PutReply put = VMDEDUP__PUT_REPLY__INIT;
	static Vmdedup__Receipt *receipts[1];
	static uint32_t numbers[] = { 1, 2, 3, 1 << 20 };
	static uint64_t epochs[] = { 1, 1ULL << 50 };
	static int32_t errors[] = { 0, -2, 28 };

	reply->id = 5;
	if (n == 0) {
		server.endpoint = "tcp://10.0.0.1:7402";
		server.disk = (ProtobufCBinaryData){ 16, bytes };
		map.n_servers = 2;
		map.servers = servers;
		map.n_shard_servers = 4;
		map.shard_servers = numbers;
		map.n_shard_epochs = 2;
		map.shard_epochs = epochs;
		join.map = &map;
		join.receipt_key = (ProtobufCBinaryData){ 32, bytes };
		reply->body_case = VMDEDUP__REPLY__BODY_SERVER_JOIN;
		reply->server_join = &join;
	} else {
		receipts[0] = a_receipt();
		put.n_receipts = 1;
		put.receipts = receipts;
		put.n_errors = 3;
		put.errors = errors;
		reply->error = 11;
		reply->error_text = "later";
		reply->body_case = VMDEDUP__REPLY__BODY_PUT;
		reply->put = &put;
	}
	return vmdedup__reply__get_packed_size(reply);
}

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	if (n < 4) {
		FUZZ_CHECK(request_seed(n, &req) <= room);
		return vmdedup__request__pack(&req, out);
	}
	if (n < 6) {
		FUZZ_CHECK(reply_seed(n - 4, &reply) <= room);
		return vmdedup__reply__pack(&reply, out);
	}
	return 0;
}
