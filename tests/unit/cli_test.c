// SPDX-License-Identifier: GPL-2.0-or-later
/* Options, exit codes and words of the command. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/dm.h"
#include "cli/ui.h"

static const struct verb verb = { "noun", "verb", "A [B]", "does something", "examples:\n", NULL };

struct parsed {
	bool flag, go;
	const char *text;
	uint64_t size, number;
	int argc, code;
	char *first;
};

static struct parsed parse(int argc, ...)
{
	struct parsed p = { .text = "", .code = -1 };
	const struct opt opts[] = {
		OPT_FLAG("flag", &p.flag, "a flag"),
		OPT_TEXT("text", "T", &p.text, "a text"),
		OPT_SIZE("size", "S", &p.size, "a size"),
		OPT_NUMBER("number", "N", &p.number, "a number"),
		OPT_END
	};
	char *words[16] = { (char *)"verb" }, **argv = words;
	va_list ap;

	va_start(ap, argc);
	for (int i = 1; i <= argc; i++)
		words[i] = va_arg(ap, char *);
	va_end(ap);
	p.argc = argc + 1;
	p.go = cli_options(&verb, opts, &p.argc, &argv, 1, 2, &p.code);
	p.first = p.go ? argv[0] : NULL;
	return p;
}

static void test_options(void **state)
{
	struct parsed p = parse(1, "one");

	assert_true(p.go);
	assert_int_equal(p.argc, 1);
	assert_string_equal(p.first, "one");
	p = parse(8, "--size", "64K", "one", "--flag", "--text=x y", "--number", "7", "two");
	assert_true(p.go);
	assert_int_equal(p.argc, 2);
	assert_string_equal(p.first, "one");
	assert_true(p.flag);
	assert_string_equal(p.text, "x y");
	assert_int_equal(p.size, 65536);
	assert_int_equal(p.number, 7);
	p = parse(2, "--", "--flag");
	assert_true(p.go);
	assert_string_equal(p.first, "--flag");
}

static void test_wrong_options(void **state)
{
	assert_int_equal(parse(0).code, EXIT_USAGE);
	assert_int_equal(parse(3, "1", "2", "3").code, EXIT_USAGE);
	assert_int_equal(parse(2, "one", "--unknown").code, EXIT_USAGE);
	assert_int_equal(parse(2, "one", "--size").code, EXIT_USAGE);
	assert_int_equal(parse(3, "one", "--size", "much").code, EXIT_USAGE);
	assert_int_equal(parse(3, "one", "--number", "-1").code, EXIT_USAGE);
	assert_int_equal(parse(3, "one", "--number", "1x").code, EXIT_USAGE);
	assert_int_equal(parse(3, "one", "--number", "99999999999999999999").code, EXIT_USAGE);
	assert_int_equal(parse(1, "--help").code, EXIT_OK);
}

static void test_exit_codes(void **state)
{
	static const struct {
		int r, code;
	} cases[] = {
		{ 0, EXIT_OK },		      { -ENOENT, EXIT_NOT_FOUND },
		{ -EEXIST, EXIT_IN_THE_WAY }, { -EBUSY, EXIT_IN_THE_WAY },
		{ -EINTR, EXIT_INTERRUPTED }, { -ETIMEDOUT, EXIT_UNREACHABLE },
		{ -EIO, EXIT_FAILED },	      { -ENOSPC, EXIT_FAILED },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_int_equal(cli_exit_of(cases[i].r), cases[i].code);
}

static void test_durations(void **state)
{
	static const struct {
		uint64_t ms;
		const char *text;
	} cases[] = {
		{ 5, "5 ms" },	      { 1999, "1 s" },		{ 119000, "119 s" },
		{ 120000, "2 min" },  { 7200000, "2 h" },	{ 48 * 3600000ULL, "2 d" },
	};
	char text[32];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_string_equal(duration_to_text(cases[i].ms, text), cases[i].text);
	assert_string_equal(time_to_text(0, text), "-");
}

static void test_device_names(void **state)
{
	char name[200];

	assert_null(dm_name_check("web-01"));
	assert_non_null(dm_name_check(""));
	assert_non_null(dm_name_check("a/b"));
	assert_non_null(dm_name_check("a b"));
	memset(name, 'x', sizeof(name));
	name[127] = '\0';
	assert_null(dm_name_check(name));
	name[127] = 'x';
	name[128] = '\0';
	assert_non_null(dm_name_check(name));
}

/* What a function prints. */
static char *printed(void (*print)(void), char *buf, size_t size)
{
	char path[] = "/tmp/vmdedup-cli-XXXXXX";
	int fd = mkstemp(path), saved = dup(STDOUT_FILENO);
	ssize_t n;

	fflush(stdout);
	dup2(fd, STDOUT_FILENO);
	print();
	fflush(stdout);
	dup2(saved, STDOUT_FILENO);
	n = pread(fd, buf, size - 1, 0);
	buf[n > 0 ? n : 0] = '\0';
	close(fd);
	close(saved);
	unlink(path);
	return buf;
}

static void print_table(void)
{
	static const char *const heads[] = { "<NAME", "SIZE", "<NOTE" };
	struct table *t = table_new(heads, 3);

	table_cell(t, "%s", "a-long-name");
	table_cell(t, "%d", 5);
	table_cell(t, "%s", "x");
	table_cell(t, "%s", "b");
	table_cell(t, "%d", 12345);
	table_cell(t, "%s", "");
	table_print(t);
}

static void test_table(void **state)
{
	char out[512];

	assert_string_equal(printed(print_table, out, sizeof(out)), "NAME          SIZE  NOTE\n"
								    "a-long-name      5  x\n"
								    "b            12345  \n");
}

static void print_help(void)
{
	bool flag;
	const struct opt opts[] = { OPT_FLAG("flag", &flag, "a flag"), OPT_END };

	verb_help(&verb, opts);
}

static void test_help(void **state)
{
	char out[1024];

	printed(print_help, out, sizeof(out));
	assert_non_null(strstr(out, "usage: vmdedup noun verb [OPTION...] A [B]\n"));
	assert_non_null(strstr(out, "  --flag                   a flag\n"));
	assert_non_null(strstr(out, "examples:\n"));
}

/* A name that a table has may be another image's by now: what counts is the UUID. */
static void test_devices(void **state)
{
	const struct dm_volume all[] = {
		{ .name = "web-01", .image = "web-01", .uuid = { { 1 } } },
		{ .name = "vol-b", .image = "web-02", .uuid = { { 2 } } },
		{ .name = "web-02-old", .image = "web-03", .uuid = { { 3 } } },
		{ .name = "odd", .image = "vol-b", .uuid = { { 4 } } },
		{ .name = "mute", .image = "web-05" },
	};
	const size_t n = ARRAY_SIZE(all);
	char text[UUID_TEXT_SIZE];
	struct error err = { 0 };
	struct dm_named d;

	assert_int_equal(dm_find_among(all, n, "web-01", &d, &err), 0);
	assert_string_equal(d.device, "web-01");
	assert_true(uuid_equal(&d.uuid, &all[0].uuid));
	assert_string_equal(d.volume, uuid_to_text(&all[0].uuid, text));
	assert_string_equal(d.image, "web-01");
	assert_int_equal(dm_find_among(all, n, "web-02", &d, &err), 0);
	assert_string_equal(d.device, "vol-b");
	assert_int_equal(dm_find_among(all, n, uuid_to_text(&all[2].uuid, text), &d, &err), 0);
	assert_string_equal(d.device, "web-02-old");
	assert_string_equal(d.image, "web-03");
	assert_int_equal(dm_find_among(all, n, "vol-b", &d, &err), -EEXIST);
	assert_non_null(strstr(err.text, "/dev/mapper/vol-b"));
	assert_non_null(strstr(err.text, "/dev/mapper/odd"));
	assert_int_equal(dm_find_among(all, n, "/dev/mapper/vol-b", &d, &err), 0);
	assert_true(uuid_equal(&d.uuid, &all[1].uuid));
	assert_int_equal(dm_find_among(all, n, "mute", &d, &err), 0);
	assert_string_equal(d.volume, "web-05");
	/* No device: the agent and the meta server may know it. */
	assert_int_equal(dm_find_among(all, n, "web-04", &d, &err), 0);
	assert_string_equal(d.device, "");
	assert_string_equal(d.volume, "web-04");
	assert_int_equal(dm_find_among(all, n, "/dev/mapper/web-03", &d, &err), 0);
	assert_string_equal(d.device, "");
}

static void test_table_words(void **state)
{
	static const char *const params[][2] = {
		{ "253:0 web-01", "253:0 U" },
		{ "253:0 web-01 1 read_only", "253:0 U 1 read_only" },
		{ "253:0  web-01 2 fetch_timeout 5", "253:0 U 2 fetch_timeout 5" },
	};
	char *made;

	for (size_t i = 0; i < ARRAY_SIZE(params); i++) {
		made = dm_params_with(params[i][0], "U");
		assert_string_equal(made, params[i][1]);
		free(made);
	}
	assert_null(dm_params_with("253:0", "U"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),	   cmocka_unit_test(test_wrong_options),
		cmocka_unit_test(test_exit_codes), cmocka_unit_test(test_durations),
		cmocka_unit_test(test_device_names), cmocka_unit_test(test_table),
		cmocka_unit_test(test_help),	   cmocka_unit_test(test_devices),
		cmocka_unit_test(test_table_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
