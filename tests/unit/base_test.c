// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/config.h"
#include "base/error.h"
#include "base/fingerprint.h"
#include "base/log.h"
#include "base/uuid.h"

static void test_error(void **state)
{
	struct error err;
	char big[2 * ERROR_TEXT_SIZE];

	assert_int_equal(error_set(&err, -ENOENT, "no image '%s'", "web"), -ENOENT);
	assert_int_equal(err.code, -ENOENT);
	assert_int_equal(error_prefix(&err, "attach %d", 7), -ENOENT);
	assert_string_equal(err.text, "attach 7: no image 'web'");
	assert_int_equal(error_set(NULL, -EIO, "x"), -EIO);
	assert_int_equal(error_prefix(NULL, "x"), 0);

	/* Neither overflows. */
	memset(big, 'a', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	error_set(&err, -EIO, "%s", big);
	assert_int_equal(strlen(err.text), ERROR_TEXT_SIZE - 1);
	error_prefix(&err, "%s", big);
	assert_int_equal(strlen(err.text), ERROR_TEXT_SIZE - 1);
}

static void test_fingerprint_vectors(void **state)
{
	static const struct {
		enum fp_algorithm alg;
		const char *key, *data, *hex;
	} cases[] = {
		{ FP_SHA256, "", "abc",
		  "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
		{ FP_SHA256, "a", "bc",
		  "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
		{ FP_SHA1, "", "abc",
		  "a9993e364706816aba3e25717850c26c9cd0d89d000000000000000000000000" },
		{ FP_MD5, "", "abc",
		  "900150983cd24fb0d6963f7d28e17f7200000000000000000000000000000000" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct fp_hasher *h =
			fp_hasher_new(cases[i].alg, cases[i].key, strlen(cases[i].key));
		char hex[FP_HEX_SIZE];
		struct fp fp, back;

		assert_non_null(h);
		/* The state carries nothing over to the next one. */
		for (int again = 0; again < 3; again++) {
			fp_hash(h, cases[i].data, strlen(cases[i].data), &fp);
			assert_string_equal(fp_to_hex(&fp, hex), cases[i].hex);
		}
		assert_int_equal(fp_from_hex(&back, hex), 0);
		assert_true(fp_equal(&fp, &back));
		assert_false(fp_is_zero(&fp));
		fp_hasher_free(h);
	}
	assert_null(fp_hasher_new(3, NULL, 0));
}

static void test_fingerprint_text(void **state)
{
	struct fp fp = { { 0xff, 0xc0 } };
	enum fp_algorithm alg;
	char hex[FP_HEX_SIZE];

	assert_int_equal(fp_shard(&fp), 1023);
	fp.b[0] = 0;
	assert_int_equal(fp_shard(&fp), 3);
	fp_to_hex(&fp, hex);
	hex[10] = 'g';
	assert_int_equal(fp_from_hex(&fp, hex), -EINVAL);
	assert_int_equal(fp_from_hex(&fp, "00"), -EINVAL);
	assert_int_equal(fp_from_hex(&fp, ""), -EINVAL);
	assert_int_equal(fp_algorithm_from_name("sha1", &alg), 0);
	assert_int_equal(alg, FP_SHA1);
	assert_int_equal(fp_algorithm_from_name("crc32", &alg), -EINVAL);
	assert_string_equal(fp_algorithm_name(FP_MD5), "md5");
	assert_string_equal(fp_algorithm_name(77), "unknown");
}

/* One set bit anywhere, at every alignment and length around the step, is seen. */
static void test_mem_is_zero(void **state)
{
	static uint8_t buf[700];

	for (size_t start = 0; start < 17; start++)
		for (size_t len = 0; len < 400; len += len < 140 ? 1 : 37) {
			assert_true(mem_is_zero(buf + start, len));
			for (size_t i = 0; i < len; i++) {
				buf[start + i] = 1 << (i % 8);
				if (mem_is_zero(buf + start, len))
					fail_msg("byte %zu of %zu at %zu", i, len, start);
				buf[start + i] = 0;
			}
			/* What is outside does not count. */
			buf[start + len] = 1;
			if (start)
				buf[start - 1] = 1;
			assert_true(mem_is_zero(buf + start, len));
			memset(buf, 0, sizeof(buf));
		}
}

static void test_uuid(void **state)
{
	static const char *const bad[] = {
		"",
		"123e4567-e89b-42d3-a456-42661417400",
		"123e4567-e89b-42d3-a456-4266141740000",
		"123e4567+e89b-42d3-a456-426614174000",
		"123e4567-e89b-42d3-a456-42661417400g",
	};
	struct uuid a, b, null = { 0 };
	char text[UUID_TEXT_SIZE];

	assert_int_equal(uuid_generate(&a), 0);
	assert_int_equal(uuid_generate(&b), 0);
	assert_false(uuid_equal(&a, &b));
	assert_int_equal(uuid_from_text(&b, uuid_to_text(&a, text)), 0);
	assert_true(uuid_equal(&a, &b));
	assert_int_equal(text[14], '4');
	assert_false(uuid_is_null(&a));
	assert_true(uuid_is_null(&null));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(uuid_from_text(&a, bad[i]), -EINVAL);
	assert_true(uuid_equal(&a, &b));
}

static void test_sizes(void **state)
{
	static const struct {
		const char *text;
		int r;
		uint64_t bytes;
	} cases[] = {
		{ "0", 0, 0 },
		{ "4096", 0, 4096 },
		{ "512B", 0, 512 },
		{ "64M", 0, 64 << 20 },
		{ "64MB", 0, 64 << 20 },
		{ "64 MiB", 0, 64 << 20 },
		{ "1TiB", 0, 1ULL << 40 },
		{ "1.5g", 0, 3ULL << 29 },
		{ "0.1K", 0, 102 },
		{ "18446744073709551615", 0, UINT64_MAX },
		{ "18446744073709551616", -ERANGE, 0 },
		{ "16E", -ERANGE, 0 },
		{ "15E", 0, 15ULL << 60 },
		{ "99999999999999999999999999999999999999999999", -ERANGE, 0 },
		{ "", -EINVAL, 0 },
		{ "-1", -EINVAL, 0 },
		{ "+1", -EINVAL, 0 },
		{ " 1", -EINVAL, 0 },
		{ "1.", -EINVAL, 0 },
		{ "1.5", -EINVAL, 0 },
		{ "M", -EINVAL, 0 },
		{ "1Mi", -EINVAL, 0 },
		{ "1MM", -EINVAL, 0 },
		{ "1X", -EINVAL, 0 },
		{ "1 ", 0, 1 },
		{ "0x10", -EINVAL, 0 },
	};
	char text[32];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t bytes = 0;

		if (size_from_text(cases[i].text, &bytes) != cases[i].r ||
		    bytes != cases[i].bytes)
			fail_msg("'%s': %llu", cases[i].text, (unsigned long long)bytes);
	}
	assert_string_equal(size_to_text(0, text), "0 B");
	assert_string_equal(size_to_text(1023, text), "1023 B");
	assert_string_equal(size_to_text(1536, text), "1.5 KiB");
	assert_string_equal(size_to_text((1 << 20) - 1, text), "1.0 MiB");
	assert_string_equal(size_to_text(UINT64_MAX, text), "16.0 EiB");
}

static void test_clock(void **state)
{
	uint64_t a = clock_mono_ns();

	assert_true(clock_mono_ns() >= a);
	assert_true(clock_wall_s() > 1600000000);
}

/* What a peer sent cannot forge a line of the log. */
static void test_log(void **state)
{
	char path[] = "/tmp/vmdedup-log-XXXXXX", text[256];
	int fd = mkstemp(path), saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_true(fd >= 0 && saved >= 0);
	dup2(fd, STDERR_FILENO);
	log_info("peer says '%s'", "a\nb\033[2J");
	dup2(saved, STDERR_FILENO);
	close(saved);
	n = pread(fd, text, sizeof(text) - 1, 0);
	assert_true(n > 0);
	text[n] = '\0';
	assert_string_equal(text, "peer says 'a?b?[2J'\n");
	close(fd);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_error),
		cmocka_unit_test(test_fingerprint_vectors),
		cmocka_unit_test(test_fingerprint_text),
		cmocka_unit_test(test_mem_is_zero),
		cmocka_unit_test(test_uuid),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_clock),
		cmocka_unit_test(test_log),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
