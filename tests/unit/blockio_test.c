// SPDX-License-Identifier: GPL-2.0-or-later
/* Sources and sinks: holes, formats through qemu-nbd, what is refused, atomic appearance. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "blockio/blockio.h"

#define KIB 1024ULL
#define MIB (1024 * KIB)

static char dir[] = "/tmp/vmdedup-blockio-XXXXXX";

static char *in_dir(const char *name)
{
	static char paths[4][128];
	static int turn;
	char *path = paths[turn++ % 4];

	snprintf(path, 128, "%s/%s", dir, name);
	return path;
}

static void run(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	assert_int_equal(system(cmd), 0);
}

/* 8 MiB with data in [1 MiB, 1 MiB + 4 KiB) and in the last 4 KiB. */
static const char *sparse_file(void)
{
	char *path = in_dir("sparse.raw");
	char block[4096];
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	memset(block, 0x5a, sizeof(block));
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	assert_int_equal(pwrite(fd, block, sizeof(block), MIB), sizeof(block));
	assert_int_equal(pwrite(fd, block, sizeof(block), 8 * MIB - 4096), sizeof(block));
	close(fd);
	return path;
}

/* The bytes that a source calls data, and that none of its zeros lie. */
static uint64_t walk(struct source *s)
{
	uint64_t data_bytes = 0, len;
	static uint8_t buf[64 * KIB];
	struct error err;
	bool data;

	for (uint64_t at = 0; at < source_size(s); at += len) {
		assert_int_equal(source_extent(s, at, &len, &data, &err), 0);
		assert_true(len > 0 && at + len <= source_size(s));
		data_bytes += data ? len : 0;
		for (uint64_t i = 0; !data && i < len; i += sizeof(buf)) {
			size_t n = MIN(sizeof(buf), len - i);

			assert_int_equal(source_pread(s, buf, n, at + i, &err), 0);
			for (size_t b = 0; b < n; b++)
				assert_int_equal(buf[b], 0);
		}
	}
	return data_bytes;
}

static void check_content(struct source *s)
{
	struct error err;
	uint8_t buf[8192];

	assert_int_equal(source_size(s), 8 * MIB);
	assert_int_equal(source_pread(s, buf, sizeof(buf), MIB - 4096, &err), 0);
	assert_int_equal(buf[4095], 0);
	assert_int_equal(buf[4096], 0x5a);
	assert_int_equal(buf[8191], 0x5a);
	assert_int_equal(source_pread(s, buf, 512, 8 * MIB - 512, &err), 0);
	assert_int_equal(buf[511], 0x5a);
}

static void test_raw_holes(void **state)
{
	struct error err = { 0 };
	struct source *s = source_open(sparse_file(), NULL, &err);
	uint64_t data;

	assert_non_null(s);
	assert_string_equal(source_format(s), "raw");
	check_content(s);
	data = walk(s);
	assert_true(data >= 8192 && data <= 512 * KIB);
	source_close(s);
}

static void formats(const char *format, const char *options, uint64_t data_max)
{
	struct error err = { 0 };
	const char *raw = sparse_file();
	char *path = in_dir(format);
	struct source *s;
	uint64_t data;

	if (access("/usr/bin/qemu-img", X_OK))
		skip();
	run("qemu-img convert -q -f raw -O %s %s %s %s", format, options, raw, path);
	s = source_open(path, NULL, &err);
	if (!s)
		fail_msg("%s", err.text);
	assert_string_equal(source_format(s), format);
	check_content(s);
	data = walk(s);
	assert_true(data >= 8192 && data <= data_max);
	source_close(s);
}

static void test_qcow2(void **state)
{
	formats("qcow2", "-c", MIB);
}

static void test_vmdk(void **state)
{
	formats("vmdk", "-o subformat=streamOptimized", MIB);
}

static void test_vhdx(void **state)
{
	formats("vhdx", "-o block_size=1048576", 8 * MIB); /* qemu-nbd tells no holes in it */
}

static void refused(const char *what, const char *format, int code, const char *says)
{
	struct error err = { 0 };
	struct source *s = source_open(what, format, &err);

	assert_null(s);
	if (err.code != code || !strstr(err.text, says))
		fail_msg("%s: got %d \"%s\"", what, err.code, err.text);
}

static void test_refused(void **state)
{
	char *odd = in_dir("odd"), *empty = in_dir("empty"), *bad = in_dir("bad.qcow2");

	refused(in_dir("missing"), NULL, -ENOENT, "cannot open");
	refused(dir, NULL, -EISDIR, "is a directory");
	run("truncate -s 1000 %s; : >%s", odd, empty);
	refused(odd, NULL, -EINVAL, "not a multiple of 512");
	refused(empty, NULL, -EINVAL, "is empty");
	refused("/dev/null", NULL, -EINVAL, "neither a file nor a block device");
	if (access("/usr/bin/qemu-img", X_OK))
		return;
	/* The magic, and then rubbish. */
	run("(printf 'QFI\\373'; head -c 65532 /dev/zero | tr '\\0' 'x') >%s", bad);
	refused(bad, NULL, -EUCLEAN, "damaged qcow2");
	refused(odd, "vmdk", -EINVAL, "qemu-nbd");
	refused("nbd+unix:///?socket=/nowhere/at/all", NULL, -ENOENT, "cannot connect");
}

/* qemu-nbd alone would read the missing clusters as zeros. */
static void test_truncated_qcow2(void **state)
{
	char *whole = in_dir("whole.qcow2");

	if (access("/usr/bin/qemu-img", X_OK))
		skip();
	run("head -c 4M /dev/urandom >%s; qemu-img convert -f raw -O qcow2 %s %s",
	    in_dir("noise"), in_dir("noise"), whole);
	run("truncate -s 2M %s", whole);
	refused(whole, NULL, -EUCLEAN, "damaged qcow2");
}

static void test_unreadable(void **state)
{
	if (!geteuid())
		skip(); /* root reads anything */
	run("truncate -s 1M %s; chmod 0 %s", in_dir("locked"), in_dir("locked"));
	refused(in_dir("locked"), NULL, -EACCES, "Permission denied");
}

static void test_sink(void **state)
{
	struct error err = { 0 };
	char *path = in_dir("out.raw"), block[4096];
	struct sink *s = sink_open(path, 8 * MIB, false, &err);
	struct stat st;

	assert_non_null(s);
	memset(block, 1, sizeof(block));
	assert_int_equal(sink_zero(s, MIB, 0, &err), 0);
	assert_int_equal(sink_pwrite(s, block, sizeof(block), MIB, &err), 0);
	assert_int_equal(stat(path, &st), -1); /* not before the commit */
	assert_int_equal(sink_commit(s, &err), 0);
	sink_close(s);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 8 * MIB);
	assert_true(st.st_blocks * 512 < 64 * KIB);

	assert_null(sink_open(path, 8 * MIB, false, &err));
	assert_int_equal(err.code, -EEXIST);
	s = sink_open(path, MIB, true, &err);
	assert_non_null(s);
	sink_close(s); /* given up: the old one stays, and nothing else */
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 8 * MIB);
	run("test \"$(ls -A %s | grep -c vmdedup)\" = 0", dir);
}

/* Somebody else makes the file meanwhile. */
static void test_sink_race(void **state)
{
	struct error err = { 0 };
	char *path = in_dir("race.raw");
	struct sink *s = sink_open(path, MIB, false, &err);

	assert_non_null(s);
	run("echo mine >%s", path);
	assert_int_equal(sink_commit(s, &err), -EEXIST);
	sink_close(s);
	run("test \"$(cat %s)\" = mine", path);
}

static int remove_dir(void **state)
{
	run("rm -rf %s", dir);
	return 0;
}

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_raw_holes), cmocka_unit_test(test_qcow2),
		cmocka_unit_test(test_vmdk),	  cmocka_unit_test(test_vhdx),
		cmocka_unit_test(test_refused),	  cmocka_unit_test(test_truncated_qcow2),
		cmocka_unit_test(test_unreadable), cmocka_unit_test(test_sink),
		cmocka_unit_test(test_sink_race),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
