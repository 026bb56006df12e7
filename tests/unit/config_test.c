// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
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
#include "base/config.h"

static char path[] = "/tmp/vmdedup-conf-XXXXXX";

static int load(struct config *c, const char *text, struct error *err)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	return config_load(c, path, err);
}

static void test_defaults(void **state)
{
	struct config c;
	struct error err;

	assert_int_equal(load(&c, "", &err), 0);
	assert_string_equal(c.meta, "embedded");
	assert_string_equal(c.store, "/var/lib/vmdedup");
	assert_string_equal(c.run, "/run/vmdedup");
	assert_string_equal(c.data_dir, "/var/lib/vmdedup/data");
	assert_string_equal(c.meta_listen, "tcp://127.0.0.1:7401");
	assert_string_equal(c.data_listen, "tcp://127.0.0.1:7402");
	assert_string_equal(c.data_endpoint, "tcp://127.0.0.1:7402");
	assert_true(c.data_reserve == 64 << 20);
	assert_true(c.push_age_s == 300 && c.push_bytes == 256 << 20);
	assert_true(*c.host);
	assert_null(c.cache);
	config_free(&c);
	config_free(&c);
}

static void test_all_keys(void **state)
{
	struct config c;
	struct error err;

	assert_int_equal(load(&c,
			      "# a comment\n[cluster]\n"
			      "meta = tcp://10.0.0.1:7401,tcp://10.0.0.2:7401 ; why\n"
			      "[store]\n  store = /srv/dedup\n\trun=/run/d\n"
			      "[meta]\nlisten = tcp://0.0.0.0:1\n"
			      "[data]\nlisten = tcp://0.0.0.0:2\nendpoint = tcp://host:2\n"
			      "reserve = 1G\ncapacity = 1.5TiB\nhost = h1\nrack = r1\n"
			      "[agent]\ncache = /dev/mapper/cache0\npush_age = 0\npush_bytes = 1M\n"
			      "push_rate = 64K\n"
			      "[curve]\nsecret = /etc/v/key\nservers = /etc/v/meta.pub\n"
			      "clients = /etc/v/clients",
			      &err),
			 0);
	assert_string_equal(c.meta, "tcp://10.0.0.1:7401,tcp://10.0.0.2:7401");
	assert_string_equal(c.store, "/srv/dedup");
	assert_string_equal(c.run, "/run/d");
	assert_string_equal(c.data_dir, "/srv/dedup/data");
	assert_string_equal(c.data_endpoint, "tcp://host:2");
	assert_true(c.data_reserve == 1 << 30);
	assert_true(c.data_capacity == 3ULL << 39);
	assert_string_equal(c.rack, "r1");
	assert_string_equal(c.agent_rack, "r1"); /* as long as it has none of its own */
	assert_string_equal(c.cache, "/dev/mapper/cache0");
	assert_true(c.push_age_s == 0 && c.push_bytes == 1 << 20 && c.push_rate == 64 << 10);
	assert_string_equal(c.curve_clients, "/etc/v/clients");
	config_free(&c);
}

static void test_bad_input(void **state)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
		{ "[cluster]\n\nmata = x\n", ":3: unknown key 'mata' in section [cluster]" },
		{ "[clustre]\n", ":1: unknown section [clustre]" },
		{ "# c\n[x]\na=b\n", ":2: unknown section [x]" },
		{ "meta = embedded\n", ":1: 'meta' stands before any [section]" },
		{ "[meta]\nlisten 7401\n", ":2: neither '[section]' nor" },
		{ "[meta\n", ":1: neither '[section]' nor" },
		{ "[meta]\nlisten = 7401\n", ":2: listen: '7401' is not an endpoint" },
		{ "[meta]\nlisten = tcp://\n", ":2: listen: 'tcp://' is not an endpoint" },
		{ "[cluster]\nmeta = tcp://a:1,\n", ":2: meta: 'tcp://a:1,' is neither" },
		{ "[cluster]\nmeta = embeded\n", ":2: meta: 'embeded' is neither" },
		{ "[store]\nstore = data\n", ":2: store: 'data' must begin with a slash" },
		{ "[store]\nstore = /a\nstore = /b\n", ":3: 'store' is set a second time" },
		{ "[store]\nstore =\n", ":2: 'store' has no value" },
		{ "[data]\nreserve = much\n", ":2: reserve: 'much' is not a size" },
		{ "[data]\nreserve = -1\n", ":2: reserve: '-1' is not a size" },
		{ "[agent]\npush_age = 5m\n", ":2: push_age: '5m' is not a number of seconds" },
		{ "[agent]\npush_age = -5\n", ":2: push_age: '-5' is not a number of seconds" },
		{ "[agent]\npush_rate = 63K\n", ": [agent] push_rate is less than 64K" },
		{ "[agent]\ncache=/a\ncache_file=/b\n", ": [agent] has both" },
		{ "[agent]\ncache_file=/b\n", ": [agent] cache_file needs a cache_file_size" },
	};
	char longline[512];
	struct config c;
	struct error err;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char want[256];

		snprintf(want, sizeof(want), "%s%s", path, cases[i].says);
		assert_int_equal(load(&c, cases[i].text, &err), -EINVAL);
		if (strncmp(err.text, want, strlen(want)))
			fail_msg("'%s' gave '%s'", cases[i].text, err.text);
		/* Nothing is left to free, and it may be freed. */
		config_free(&c);
	}
	memset(longline, 'x', sizeof(longline) - 1);
	longline[sizeof(longline) - 1] = '\0';
	assert_int_equal(load(&c, longline, &err), -EINVAL);
	assert_non_null(strstr(err.text, ":1: the line is longer than"));
}

static void test_paths(void **state)
{
	struct config c;
	struct error err;

	assert_int_equal(config_load(&c, "/nonexistent/vmdedup.conf", &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/vmdedup.conf"));
	assert_int_equal(config_load(&c, "/tmp", &err), -EIO);
	setenv("VMDEDUP_CONF", "/nonexistent/env.conf", 1);
	assert_int_equal(config_load(&c, NULL, &err), -ENOENT);
	setenv("VMDEDUP_CONF", path, 1);
	load(&c, "[store]\nstore=/x\n", &err);
	config_free(&c);
	assert_int_equal(config_load(&c, NULL, &err), 0);
	assert_string_equal(c.store, "/x");
	config_free(&c);
	unsetenv("VMDEDUP_CONF");
}

static int setup(void **state)
{
	int fd = mkstemp(path);

	return fd < 0 ? -1 : close(fd);
}

static int teardown(void **state)
{
	return unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_all_keys),
		cmocka_unit_test(test_bad_input),
		cmocka_unit_test(test_paths),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
