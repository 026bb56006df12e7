/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a key may ask for. The folder of [curve] clients says which role a key has (net/zap.c); the
 * table here says which role a request needs at least, of whatever server. Each role may all that the
 * one before it may.
 */
#ifndef VMDEDUP_NET_ROLE_H
#define VMDEDUP_NET_ROLE_H

#include "proto/vmdedup.pb-c.h"

enum net_role {
	NET_ROLE_NONE,	/* unknown */
	NET_ROLE_HOST,	/* a hypervisor: images, leases, pushes, blocks, peers */
	NET_ROLE_DATA,	/* a data server: joins, has the receipt key, forwards and reconciles */
	NET_ROLE_ADMIN, /* a person: membership, deletion, leases of others */
};

const char *net_role_name(enum net_role role);
/* The row of a kind of request; NET_ROLE_NONE: it has none. */
enum net_role net_role_row(Vmdedup__Request__BodyCase kind);
/* What @req needs: its kind's row, or what its content asks for. A kind without a row: ADMIN. */
enum net_role net_role_needed(const Vmdedup__Request *req);
/* What is said to the host whose key @key (as text) has the role @has, too little for @req at a server of
 * this kind ("meta", "data", "agent"). */
void net_role_refusal(const Vmdedup__Request *req, const char *key, enum net_role has,
		      const char *server, char *text, size_t size);

#endif
