/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Replies on their way to a peer that may be slow: what ZeroMQ holds of them is counted, for the peer and, if
 * it belongs to a sum, for all, until ZeroMQ is done with it, on whatever thread. The server's thread sends.
 */
#ifndef VMDEDUP_NET_OUTGOING_H
#define VMDEDUP_NET_OUTGOING_H

#include "net/internal.h"
#include "net/peer.h"

/* Packs it into *msg. -EMSGSIZE: PROTO_MAX_HEADER; -ENOMEM. */
int outgoing_header(struct peer *peer, const Vmdedup__Reply *reply, zmq_msg_t *msg);
/* Sends, or drops, a packed header and its frames; takes both over. */
int outgoing_send(void *socket, struct peer *peer, zmq_msg_t *header, const struct net_frame *frames,
		  size_t nr);

#endif
