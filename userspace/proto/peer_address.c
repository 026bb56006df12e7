// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <string.h>
#include "proto/peer_address.h"

uint32_t text_hash(const char *text)
{
	uint32_t h = 2166136261U;

	for (; *text; text++)
		h = (h ^ (uint8_t)*text) * 16777619U;
	return h;
}

uint32_t peer_rack(const char *name)
{
	return name && *name ? text_hash(name) | !text_hash(name) : 0;
}

int peer_address_take(const Vmdedup__PeerAddress *in, struct peer_address *out)
{
	const char *p;

	memset(out, 0, sizeof(*out));
	if (!in || strncmp(in->endpoint, "tcp://", 6) || strlen(in->endpoint) >= PEER_ENDPOINT_MAX ||
	    (in->curve_key.len && in->curve_key.len != sizeof(out->key)))
		return -EINVAL;
	for (p = in->endpoint; *p; p++)
		if (*p <= ' ' || *p > '~')
			return -EINVAL;
	strcpy(out->endpoint, in->endpoint);
	out->has_key = in->curve_key.len;
	if (out->has_key)
		memcpy(out->key, in->curve_key.data, sizeof(out->key));
	out->rack = in->rack;
	return 0;
}

void peer_address_give(const struct peer_address *a, Vmdedup__PeerAddress *out)
{
	vmdedup__peer_address__init(out);
	out->endpoint = (char *)a->endpoint;
	out->rack = a->rack;
	if (a->has_key)
		out->curve_key = (ProtobufCBinaryData){ sizeof(a->key), (uint8_t *)a->key };
}

bool peer_address_is_of(const struct peer_address *a, const uint8_t *key)
{
	return !key || (a->has_key && !memcmp(a->key, key, sizeof(a->key)));
}

bool peer_address_equal(const struct peer_address *a, const struct peer_address *b)
{
	return a->has_key == b->has_key && !strcmp(a->endpoint, b->endpoint) &&
	       !memcmp(a->key, b->key, sizeof(a->key));
}
