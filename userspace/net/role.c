// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdio.h>

#include "net/role.h"
#include "base/cleanup.h"

/* The least role of each kind of request. A new kind needs a row. */
#define ROW(kind, role) [VMDEDUP__REQUEST__BODY_##kind] = NET_ROLE_##role
static const unsigned char rows[] = {
	ROW(HELLO, HOST),
	ROW(ROOM, HOST),
	ROW(PING, HOST),
	/* meta server: what a host needs for its volumes */
	ROW(CLUSTER_INFO, HOST),
	ROW(MAP_GET, HOST),
	ROW(SESSION_OPEN, HOST),
	ROW(IMAGE_GET, HOST),
	ROW(IMAGE_LIST, HOST),
	ROW(IMAGE_CLONE, HOST),
	ROW(IMAGE_REMOVE, HOST),
	ROW(IMAGE_RENAME, HOST),
	ROW(IMAGE_RESIZE, HOST),
	ROW(VERSION_LIST, HOST),
	ROW(SNAPSHOT, HOST),
	ROW(ROLLBACK, HOST),
	ROW(LEASE_TAKE, HOST),
	ROW(LEASE_RELEASE, HOST),
	ROW(LEASE_LIST, HOST),
	ROW(LEASE_REPORT, HOST),
	ROW(LEASE_HANDOVER, HOST),
	ROW(HOST_FIND, HOST),
	ROW(PUSH_BEGIN, HOST),
	ROW(PUSH_PART, HOST),
	ROW(PUSH_COMMIT, HOST),
	ROW(PUSH_ABORT, HOST),
	ROW(NODE_GET, HOST), /* of peers, too */
	ROW(PEER_ANNOUNCE, HOST),
	ROW(TRACE_GET, HOST),
	ROW(TRACE_PUT, HOST),
	ROW(SERVER_REPORT, HOST),
	/* meta server: data servers; the answer to SERVER_JOIN holds the receipt key */
	ROW(SERVER_JOIN, DATA),
	ROW(RECONCILE_BEGIN, DATA),
	ROW(RECONCILE_END, DATA),
	ROW(SHARD_DROP, DATA),
	/* meta server: what harms others when it is done wrongly */
	ROW(SERVER_SET, ADMIN),
	ROW(CLUSTER_SET, ADMIN),
	ROW(LEASE_BREAK, ADMIN),
	ROW(GC_STEP, ADMIN), /* but see below */
	ROW(GC_LIST, ADMIN),
	ROW(GC_SELECT, ADMIN),
	ROW(GC_FORGET, ADMIN),
	ROW(CHECK_STEP, ADMIN),
	ROW(BLOCK_LIST, ADMIN),
	ROW(DELETION_RESUME, ADMIN),
	/* data server */
	ROW(PUT, HOST),	  /* but see below */
	ROW(TOUCH, HOST), /* but see below */
	ROW(GET, HOST),
	ROW(DATA_STAT, HOST),
	ROW(SHARD_LIST, DATA),
	ROW(SHARD_DELETE, ADMIN),
	ROW(EPOCH_SET, ADMIN),
	/* agent: by peers */
	ROW(PEER_GET, HOST),
	ROW(PEER_FILTER_GET, HOST),
	ROW(PEER_WARM, HOST),
	/* agent: on its control socket, which has no keys */
	ROW(AGENT_STATUS, ADMIN),
	ROW(VOLUME_LIST, ADMIN),
	ROW(VOLUME_PUSH, ADMIN),
	ROW(VOLUME_DETACH, ADMIN),
	ROW(VOLUME_PREPARE, ADMIN),
	ROW(VOLUME_RECOVER, ADMIN),
	ROW(VOLUME_HANDOVER, ADMIN),
	ROW(PEER_LIST, ADMIN),
};

const char *net_role_name(enum net_role role)
{
	static const char *const names[] = {
		[NET_ROLE_NONE] = "none",
		[NET_ROLE_HOST] = "host",
		[NET_ROLE_DATA] = "data",
		[NET_ROLE_ADMIN] = "admin",
	};

	return (size_t)role < ARRAY_SIZE(names) ? names[role] : "none";
}

enum net_role net_role_row(Vmdedup__Request__BodyCase kind)
{
	return (size_t)kind < ARRAY_SIZE(rows) ? (enum net_role)rows[kind] : NET_ROLE_NONE;
}

enum net_role net_role_needed(const Vmdedup__Request *req)
{
	enum net_role role = net_role_row(req->body_case);

	switch (req->body_case) {
	case VMDEDUP__REQUEST__BODY_PUT:
		return req->put->forwarded ? NET_ROLE_DATA : role;
	case VMDEDUP__REQUEST__BODY_TOUCH:
		return req->touch->forwarded ? NET_ROLE_DATA : role;
	case VMDEDUP__REQUEST__BODY_GC_STEP:
		return req->gc_step->status ? NET_ROLE_HOST : role; /* it only looks */
	default:
		return role ? role : NET_ROLE_ADMIN;
	}
}

void net_role_refusal(const Vmdedup__Request *req, const char *key, enum net_role has,
		      const char *server, char *text, size_t size)
{
	const ProtobufCFieldDescriptor *kind = protobuf_c_message_descriptor_get_field(
		&vmdedup__request__descriptor, req->body_case);
	const char *needed = net_role_name(net_role_needed(req));

	snprintf(text, size, "%s needs a key with the role %s, and this host's key %s has the role %s: "
		 "where the %s server runs, move its file into the folder %s of [curve] clients, or use "
		 "a host whose key is there", kind ? kind->name : "the request", needed, key,
		 net_role_name(has), server, needed);
}
