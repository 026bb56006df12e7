// SPDX-License-Identifier: GPL-2.0-or-later
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fingerprint.h"
#include "proto/limits.h"
#include "proto/receipt.h"

struct fixture {
	Vmdedup__Receipt receipt;
	Vmdedup__Disk disks[2], *disk_list[2];
	uint8_t uuids[2][16], fps[PROTO_MAX_TOUCH + 1][FP_SIZE], mac[RECEIPT_MAC_SIZE];
	uint8_t key[RECEIPT_KEY_SIZE];
};

static void init(struct fixture *f)
{
	memset(f, 0, sizeof(*f));
	vmdedup__receipt__init(&f->receipt);
	f->receipt.shard = 1023;
	f->receipt.epoch = 5;
	f->receipt.map_version = 7;
	f->receipt.domain = 1;
	for (int i = 0; i < 2; i++) {
		vmdedup__disk__init(&f->disks[i]);
		memset(f->uuids[i], i + 1, 16);
		f->disks[i].uuid.data = f->uuids[i];
		f->disks[i].uuid.len = 16;
		f->disks[i].incarnation = 100 + i;
		f->disks[i].server = i + 1;
		f->disk_list[i] = &f->disks[i];
	}
	f->receipt.disks = f->disk_list;
	f->receipt.n_disks = 2;
	for (int i = 0; i <= PROTO_MAX_TOUCH; i++) {
		memset(f->fps[i], i, FP_SIZE);
		f->fps[i][0] = 0xff;
		f->fps[i][1] = 0xc0 + i % 64;
	}
	f->receipt.fingerprints.data = f->fps[0];
	f->receipt.fingerprints.len = 2 * FP_SIZE;
	f->receipt.mac.data = f->mac;
	f->receipt.mac.len = sizeof(f->mac);
	for (int i = 0; i < RECEIPT_KEY_SIZE; i++)
		f->key[i] = i;
	receipt_mac(&f->receipt, f->key, f->mac);
}

/* Computed once with another implementation of HMAC. */
static void test_golden(void **state)
{
	struct fixture f;
	struct fp mac;
	char hex[FP_HEX_SIZE];

	init(&f);
	memcpy(mac.b, f.mac, sizeof(mac.b));
	assert_string_equal(fp_to_hex(&mac, hex),
			    "d53220282d54a651629a086286d5446fcee23bc96a885390672e8fe98cce09b7");
	assert_true(receipt_is_authentic(&f.receipt, f.key));
}

/* Every field counts. */
static void test_changes(void **state)
{
	for (int i = 0; i < 13; i++) {
		struct fixture f;

		init(&f);
		switch (i) {
		case 0: f.receipt.epoch++; break;
		case 1: f.receipt.map_version ^= 1ULL << 63; break;
		case 2: f.receipt.domain = 2; break;
		case 3: f.receipt.n_disks = 1; break;
		case 4: f.uuids[1][15]++; break;
		case 5: f.disks[0].incarnation = 101; break;
		case 6: f.disks[1].server = 1; break;
		case 7: f.fps[1][31] ^= 1; break;
		case 8: f.receipt.fingerprints.len = FP_SIZE; break;
		case 9: f.mac[31] ^= 1; break;
		case 10: f.key[0] ^= 1; break;
		case 11: f.disk_list[0] = &f.disks[1]; break;
		case 12: f.receipt.shard = 1022; break;
		}
		if (receipt_is_authentic(&f.receipt, f.key))
			fail_msg("change %d was not seen", i);
	}
}

/* A well computed MAC over what no data server says. */
static void test_malformed(void **state)
{
	static Vmdedup__Disk *many[17];

	for (int i = 0; i < 10; i++) {
		static struct fixture f;

		init(&f);
		switch (i) {
		case 0: f.fps[1][0] = 0xfe; break;
		case 1: f.receipt.shard = 1024; break;
		case 2: f.receipt.n_disks = 0; break;
		case 3: f.disks[0].uuid.len = 15; break;
		case 4: f.disks[0].uuid.len = 0; break;
		case 5: f.receipt.fingerprints.len = 33; break;
		case 6: f.receipt.fingerprints.len = 0; break;
		case 7: f.receipt.fingerprints.len = (PROTO_MAX_TOUCH + 1) * FP_SIZE; break;
		case 8:
			f.receipt.shard = 0;
			memset(f.fps, 0, 2 * FP_SIZE);
			break;
		case 9:
			for (size_t d = 0; d < ARRAY_SIZE(many); d++)
				many[d] = &f.disks[0];
			f.receipt.disks = many;
			f.receipt.n_disks = ARRAY_SIZE(many);
			break;
		}
		receipt_mac(&f.receipt, f.key, f.mac);
		if (receipt_is_authentic(&f.receipt, f.key))
			fail_msg("case %d was believed", i);
	}
}

static void test_mac_size(void **state)
{
	struct fixture f;

	init(&f);
	for (f.receipt.mac.len = 0; f.receipt.mac.len < 32; f.receipt.mac.len++)
		assert_false(receipt_is_authentic(&f.receipt, f.key));
}

static void test_image_names(void **state)
{
	static const char *const good[] = { "a", "web-01", "0", "_x", "A.b-c_d+e:f@g", "@", "+" };
	static const char *const bad[] = { "", "-a", ".a", "..", "a/b", "/", "a b", "a\n", "\x80",
					  "a\\" };
	char name[IMAGE_NAME_MAX + 47];

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_null(image_name_check(good[i]));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_non_null(image_name_check(bad[i]));
	assert_non_null(image_name_check(NULL));
	memset(name, 'a', sizeof(name));
	name[sizeof(name) - 1] = '\0';
	assert_non_null(image_name_check(name));
	name[IMAGE_NAME_MAX + 1] = '\0';
	assert_non_null(image_name_check(name));
	name[IMAGE_NAME_MAX] = '\0';
	assert_null(image_name_check(name));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden),	  cmocka_unit_test(test_changes),
		cmocka_unit_test(test_malformed), cmocka_unit_test(test_mac_size),
		cmocka_unit_test(test_image_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
