// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/fingerprint.h"
#include "base/log.h"

struct fp_hasher {
	EVP_MD *md; /* fetched once: a fetch takes locks and costs as much as hashing 1 KiB */
	EVP_MD_CTX *ctx;
	void *key;
	size_t key_len;
};

static const char *const algorithm_names[] = {
	[FP_SHA256] = "sha256",
	[FP_SHA1] = "sha1",
	[FP_MD5] = "md5",
};

const char *fp_algorithm_name(enum fp_algorithm alg)
{
	return (unsigned int)alg < ARRAY_SIZE(algorithm_names) ? algorithm_names[alg] : "unknown";
}

int fp_algorithm_from_name(const char *name, enum fp_algorithm *alg)
{
	for (size_t i = 0; i < ARRAY_SIZE(algorithm_names); i++)
		if (!strcmp(name, algorithm_names[i])) {
			*alg = i;
			return 0;
		}
	return -EINVAL;
}

struct fp_hasher *fp_hasher_new(enum fp_algorithm alg, const void *key, size_t key_len)
{
	struct fp_hasher *h;

	if ((unsigned int)alg >= ARRAY_SIZE(algorithm_names))
		return NULL;
	h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	h->md = EVP_MD_fetch(NULL, fp_algorithm_name(alg), NULL);
	h->ctx = EVP_MD_CTX_new();
	if (!h->md || !h->ctx || EVP_MD_get_size(h->md) > FP_SIZE)
		goto free_hasher;
	if (key_len) {
		h->key = malloc(key_len);
		if (!h->key)
			goto free_hasher;
		memcpy(h->key, key, key_len);
		h->key_len = key_len;
	}
	/* The digest's state is allocated here, and used again by every fp_hash(). */
	if (!EVP_DigestInit_ex(h->ctx, h->md, NULL))
		goto free_hasher;
	return h;

free_hasher:
	fp_hasher_free(h);
	return NULL;
}

void fp_hasher_free(struct fp_hasher *h)
{
	if (!h)
		return;
	EVP_MD_CTX_free(h->ctx);
	EVP_MD_free(h->md);
	if (h->key)
		OPENSSL_cleanse(h->key, h->key_len);
	free(h->key);
	free(h);
}

void fp_hash(struct fp_hasher *h, const void *data, size_t len, struct fp *out)
{
	memset(out, 0, sizeof(*out));
	if (!EVP_DigestInit_ex(h->ctx, h->md, NULL) ||
	    (h->key_len && !EVP_DigestUpdate(h->ctx, h->key, h->key_len)) ||
	    !EVP_DigestUpdate(h->ctx, data, len) || !EVP_DigestFinal_ex(h->ctx, out->b, NULL)) {
		/* A wrong fingerprint would be believed by everyone: stop instead. */
		log_error("computing a %s digest failed inside OpenSSL", EVP_MD_get0_name(h->md));
		abort();
	}
}

const char *fp_to_hex(const struct fp *a, char hex[FP_HEX_SIZE])
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < FP_SIZE; i++) {
		hex[2 * i] = digits[a->b[i] >> 4];
		hex[2 * i + 1] = digits[a->b[i] & 15];
	}
	hex[2 * FP_SIZE] = '\0';
	return hex;
}

int fp_from_hex(struct fp *a, const char *hex)
{
	struct fp v = { 0 };

	if (strnlen(hex, FP_HEX_SIZE) != FP_HEX_SIZE - 1)
		return -EINVAL;
	for (size_t i = 0; i < 2 * FP_SIZE; i++) {
		char c = hex[i];
		int digit;

		if (c >= '0' && c <= '9')
			digit = c - '0';
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			digit = (c | 0x20) - 'a' + 10;
		else
			return -EINVAL;
		v.b[i / 2] = v.b[i / 2] << 4 | digit;
	}
	*a = v;
	return 0;
}

typedef uint64_t vec __attribute__((vector_size(16)));
#define ZERO_STEP 128

bool mem_is_zero(const void *data, size_t len)
{
	const uint8_t *p = data;

	/* Eight independent loads a step: as fast as memory, and most blocks end at the first. */
	for (; len >= ZERO_STEP; p += ZERO_STEP, len -= ZERO_STEP) {
		vec v[ZERO_STEP / sizeof(vec)], any;

		memcpy(v, p, ZERO_STEP);
		any = ((v[0] | v[1]) | (v[2] | v[3])) | ((v[4] | v[5]) | (v[6] | v[7]));
		if (any[0] | any[1])
			return false;
	}
	while (len--)
		if (*p++)
			return false;
	return true;
}
