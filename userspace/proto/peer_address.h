/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where an agent serves peers, and the key that it proves to have. */
#ifndef VMDEDUP_PROTO_PEER_ADDRESS_H
#define VMDEDUP_PROTO_PEER_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include "proto/vmdedup.pb-c.h"

#define PEER_ENDPOINT_MAX 128 /* bytes, the final zero included */

struct peer_address {
	char endpoint[PEER_ENDPOINT_MAX];
	bool has_key;
	uint8_t key[32];
	uint32_t rack; /* peer_rack() of what it says; 0: nothing. A hint: no part of who it is */
};

uint32_t text_hash(const char *text); /* FNV-1a */
/* text_hash() of the rack's name; 0 when that is empty or NULL. Two names seldom have the same: then
 * hosts of two racks are taken for neighbours. */
uint32_t peer_rack(const char *name);

/* -EINVAL: not tcp://, too long, not printable, or a key of another length. @in may be NULL. */
int peer_address_take(const Vmdedup__PeerAddress *in, struct peer_address *out);
/* @out points into @a. */
void peer_address_give(const struct peer_address *a, Vmdedup__PeerAddress *out);
/* Whoever is connected by @key (NULL: a local connection, or one without keys) may say that it is at @a:
 * only the owner of a key may. */
bool peer_address_is_of(const struct peer_address *a, const uint8_t *key);
bool peer_address_equal(const struct peer_address *a, const struct peer_address *b);

#endif
