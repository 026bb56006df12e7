// SPDX-License-Identifier: GPL-2.0-or-later
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>

#include "base/fingerprint.h"
#include "base/log.h"
#include "proto/limits.h"
#include "proto/receipt.h"

#define RECEIPT_HEAD_SIZE (4 + 4 + 8 + 8 + 4 + 4)
#define RECEIPT_DISK_SIZE (16 + 8 + 4)
#define RECEIPT_MAX_DISKS 16

static uint8_t *put_le(uint8_t *p, uint64_t v, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		*p++ = v >> (8 * i);
	return p;
}

static bool mac_disks(EVP_MAC_CTX *ctx, const Vmdedup__Receipt *r)
{
	for (size_t i = 0; i < r->n_disks; i++) {
		const Vmdedup__Disk *d = r->disks[i];
		uint8_t buf[RECEIPT_DISK_SIZE] = { 0 }, *p = buf;

		/* A UUID of another size is never authentic: receipt_is_authentic() checks. */
		memcpy(p, d->uuid.data, d->uuid.len < 16 ? d->uuid.len : 16);
		p = put_le(p + 16, d->incarnation, 8);
		put_le(p, d->server, 4);
		if (!EVP_MAC_update(ctx, buf, sizeof(buf)))
			return false;
	}
	return true;
}

void receipt_mac(const Vmdedup__Receipt *r, const uint8_t key[RECEIPT_KEY_SIZE],
		 uint8_t mac[RECEIPT_MAC_SIZE])
{
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0),
		OSSL_PARAM_construct_end(),
	};
	EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	EVP_MAC_CTX *ctx = hmac ? EVP_MAC_CTX_new(hmac) : NULL;
	uint8_t head[RECEIPT_HEAD_SIZE], *p = head;
	size_t len;

	memcpy(p, "VDRC", 4);
	p = put_le(p + 4, r->shard, 4);
	p = put_le(p, r->epoch, 8);
	p = put_le(p, r->map_version, 8);
	p = put_le(p, r->domain, 4);
	put_le(p, r->n_disks, 4);
	if (!ctx || !EVP_MAC_init(ctx, key, RECEIPT_KEY_SIZE, params) ||
	    !EVP_MAC_update(ctx, head, sizeof(head)) || !mac_disks(ctx, r) ||
	    !EVP_MAC_update(ctx, r->fingerprints.data, r->fingerprints.len) ||
	    !EVP_MAC_final(ctx, mac, &len, RECEIPT_MAC_SIZE)) {
		/* Nobody can go on without knowing whether a receipt holds. */
		log_error("computing the MAC of a receipt failed inside OpenSSL");
		abort();
	}
	EVP_MAC_CTX_free(ctx);
	EVP_MAC_free(hmac);
}

static bool receipt_is_well_formed(const Vmdedup__Receipt *r)
{
	if (r->shard >= NR_SHARDS || r->mac.len != RECEIPT_MAC_SIZE)
		return false;
	if (!r->n_disks || r->n_disks > RECEIPT_MAX_DISKS)
		return false;
	for (size_t i = 0; i < r->n_disks; i++)
		if (r->disks[i]->uuid.len != 16)
			return false;
	if (!r->fingerprints.len || r->fingerprints.len % FP_SIZE ||
	    r->fingerprints.len / FP_SIZE > PROTO_MAX_TOUCH)
		return false;
	for (size_t i = 0; i < r->fingerprints.len; i += FP_SIZE) {
		struct fp fp;

		memcpy(&fp, r->fingerprints.data + i, sizeof(fp));
		if (fp_shard(&fp) != r->shard || fp_is_zero(&fp))
			return false;
	}
	return true;
}

bool receipt_is_authentic(const Vmdedup__Receipt *r, const uint8_t key[RECEIPT_KEY_SIZE])
{
	uint8_t mac[RECEIPT_MAC_SIZE];

	if (!receipt_is_well_formed(r))
		return false;
	receipt_mac(r, key, mac);
	return !CRYPTO_memcmp(mac, r->mac.data, sizeof(mac));
}
