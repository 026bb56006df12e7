/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Receipts: data servers' durable statement that blocks of one shard are there. The MAC is
 * HMAC-SHA-256 under the cluster's receipt key over, little-endian: "VDRC", u32 shard,
 * u64 epoch, u64 map version, u32 domain, u32 number of disks, per disk (16 bytes UUID,
 * u64 incarnation, u32 server), then the fingerprints.
 */
#ifndef VMDEDUP_PROTO_RECEIPT_H
#define VMDEDUP_PROTO_RECEIPT_H

#include <stdbool.h>
#include <stdint.h>
#include "proto/vmdedup.pb-c.h"

#define RECEIPT_MAC_SIZE 32
#define RECEIPT_KEY_SIZE 32

void receipt_mac(const Vmdedup__Receipt *r, const uint8_t key[RECEIPT_KEY_SIZE],
		 uint8_t mac[RECEIPT_MAC_SIZE]);
/* Also checks sizes and that every fingerprint is of the shard. */
bool receipt_is_authentic(const Vmdedup__Receipt *r, const uint8_t key[RECEIPT_KEY_SIZE]);

#endif
