// SPDX-License-Identifier: GPL-2.0-or-later
/* Keys, and where none are needed. */
#include <errno.h>
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
#include <czmq.h>

#include "net_world.h"

static char dir[] = "/tmp/vmdedup-net-XXXXXX";

static char *key_path(const char *name)
{
	return netw_path(dir, name);
}

/* Hosts of this cluster are those whose keys may connect. */
static void make_key(const char *name, bool may_connect, uint8_t public_key[32])
{
	netw_make_key(dir, name, may_connect, public_key);
}

static void test_curve(void **state)
{
	uint8_t server_key[32], good_key[32], bad_key[32];
	struct net_ctx *server_ctx, *good, *bad, *plain;
	struct netw_server *s;
	struct net_client *c;
	struct net_reply reply;
	struct error err;
	const char *endpoint;

	mkdir(key_path("clients"), 0700);
	make_key("server", false, server_key);
	make_key("good", true, good_key);
	make_key("bad", false, bad_key);
	server_ctx = netw_context(key_path("server_secret"), key_path("clients"));
	good = netw_context(key_path("good_secret"), NULL);
	bad = netw_context(key_path("bad_secret"), NULL);
	plain = netw_context(NULL, NULL);
	assert_memory_equal(net_ctx_public_key(good), good_key, 32);
	assert_null(net_ctx_public_key(plain));
	s = netw_server_start(server_ctx, false, "tcp://127.0.0.1:*");
	endpoint = net_server_endpoint(s->net, 0);

	c = netw_client(good, endpoint, server_key);
	assert_int_equal(
		netw_call(c, VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat, &reply, &err), 0);
	assert_non_null(strstr(reply.header->error_text, " key "));
	net_reply_free(&reply);
	net_client_free(c);

	/* A key that is not in the folder */
	c = netw_client(bad, endpoint, server_key);
	/* On a busy machine the handshake may not have come so far. */
	for (int i = 0; i < NETW_WAIT_MS / 500; i++) {
		assert_int_equal(netw_stat_call(c, 500, &err), -ETIMEDOUT);
		if (strstr(err.text, "refused this host's key"))
			break;
	}
	assert_non_null(strstr(err.text, "refused this host's key"));
	/* ... and then is: the folder is read again, the client comes again by itself. */
	zcert_t *cert = zcert_load(key_path("bad"));

	assert_int_equal(zcert_save_public(cert, key_path("clients/bad-too")), 0);
	zcert_destroy(&cert);
	assert_int_equal(netw_stat_call(c, NETW_WAIT_MS, &err), 0);
	net_client_free(c);

	/* Another server's key; no keys at all */
	c = netw_client(good, endpoint, bad_key);
	assert_int_equal(netw_stat_call(c, 300, &err), -ETIMEDOUT);
	net_client_free(c);
	c = netw_client(plain, endpoint, NULL);
	assert_int_equal(netw_stat_call(c, 300, &err), -ETIMEDOUT);
	net_client_free(c);
	assert_int_equal(atomic_load(&s->seen), 2);

	/* What is missing is named. */
	assert_null(net_client_new(plain, endpoint, server_key, "agent", &err));
	assert_int_equal(err.code, -EACCES);
	assert_non_null(strstr(err.text, "[curve] secret"));
	assert_null(net_client_new(good, endpoint, NULL, "agent", &err));
	assert_non_null(strstr(err.text, "[curve] servers"));

	struct net_server *refused =
		net_server_new(good, "data", NULL, &netw_server_ops, NULL, 0, &err);

	assert_int_equal(net_server_bind(refused, "tcp://127.0.0.1:*", &err), -EACCES);
	assert_non_null(strstr(err.text, "[curve] clients"));
	net_server_free(refused);

	netw_server_stop(s);
	net_ctx_free(plain);
	net_ctx_free(good);
	net_ctx_free(bad);
	net_ctx_free(server_ctx);
	netw_server_free(s);
}

static void test_curve_restart(void **state)
{
	uint8_t server_key[32], client_key[32];
	struct net_ctx *server_ctx, *ctx;
	struct netw_server *s[2];
	struct net_client *c;
	char endpoint[256];

	mkdir(key_path("clients"), 0700);
	make_key("server2", false, server_key);
	make_key("client2", true, client_key);
	server_ctx = netw_context(key_path("server2_secret"), key_path("clients"));
	ctx = netw_context(key_path("client2_secret"), NULL);
	s[0] = netw_server_start(server_ctx, false, "tcp://127.0.0.1:*");
	strcpy(endpoint, net_server_endpoint(s[0]->net, 0));
	c = netw_client(ctx, endpoint, server_key);
	assert_int_equal(netw_stat_call(c, NETW_WAIT_MS, NULL), 0);
	netw_server_stop(s[0]);
	s[1] = netw_server_start(server_ctx, false, endpoint);
	assert_int_equal(netw_stat_call(c, NETW_WAIT_MS, NULL), 0);
	netw_server_stop(s[1]);
	net_client_free(c);
	net_ctx_free(ctx);
	net_ctx_free(server_ctx);
	netw_server_free(s[0]);
	netw_server_free(s[1]);
}

static void test_bad_keys(void **state)
{
	struct error err;
	uint8_t key[32];
	FILE *f;

	make_key("some", false, key);
	assert_null(net_ctx_new(key_path("missing"), NULL, &err));
	assert_int_equal(err.code, -ENOENT);
	assert_non_null(strstr(err.text, "[curve] secret"));
	f = fopen(key_path("garbage"), "w");
	fputs("metadata\n    name = no key\n", f);
	fclose(f);
	assert_null(net_ctx_new(key_path("garbage"), NULL, &err));
	assert_null(net_ctx_new(key_path("some_secret"), key_path("nodir"), &err));
	assert_int_equal(err.code, -ENOENT);
	assert_null(net_ctx_new(NULL, dir, &err));
	assert_int_equal(err.code, -EINVAL);
	/* A public key alone */
	unlink(key_path("some_secret"));
	assert_null(net_ctx_new(key_path("some"), NULL, &err));
	assert_non_null(strstr(err.text, "public key only"));
}

static void test_endpoints(void **state)
{
	static const char *const far[] = {"tcp://10.0.0.1:7401", "tcp://0.0.0.0:0",
					  "tcp://*:7401",	 "tcp://localhost:7401",
					  "tcp://[::]:7401",	 "tcp://127.0.0.1.example.com:1",
					  "tcp://128.0.0.1:1"};
	static const char *const bad[] = {
		"", "7401", "udp://1.2.3.4:5", "tcp://", "ipc://", "ipc://@abstract", "inproc://"};
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct error err;
	struct net_server *s = net_server_new(ctx, "data", NULL, &netw_server_ops, NULL, 0, &err);

	for (size_t i = 0; i < NETW_COUNT(far); i++) {
		assert_null(net_client_new(ctx, far[i], NULL, "agent", &err));
		assert_int_equal(err.code, -EACCES);
		assert_int_equal(net_server_bind(s, far[i], &err), -EACCES);
		assert_non_null(strstr(err.text, "[curve]"));
	}
	for (size_t i = 0; i < NETW_COUNT(bad); i++) {
		assert_null(net_client_new(ctx, bad[i], NULL, "agent", &err));
		assert_int_equal(err.code, -EINVAL);
		assert_int_equal(net_server_bind(s, bad[i], &err), -EINVAL);
	}
	assert_int_equal(net_server_bind(s, "tcp://127.0.0.1:*", &err), 0);
	/* A port that is taken */
	assert_int_equal(net_server_bind(s, net_server_endpoint(s, 0), &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "cannot listen on tcp://127.0.0.1:"));
	for (int i = 1; i < 16; i++)
		assert_int_equal(net_server_bind(s, "tcp://127.0.0.1:*", &err), 0);
	assert_int_equal(net_server_bind(s, "tcp://127.0.0.1:*", &err), -ENOSPC);
	assert_null(net_server_endpoint(s, 16));
	/* A stop that came first is not lost. */
	net_server_stop(s);
	assert_int_equal(net_server_run(s, &err), 0);
	net_server_free(s);
	net_ctx_free(ctx);
}

static int setup(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_curve),
		cmocka_unit_test(test_curve_restart),
		cmocka_unit_test(test_bad_keys),
		cmocka_unit_test(test_endpoints),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
