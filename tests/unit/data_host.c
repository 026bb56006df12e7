// SPDX-License-Identifier: GPL-2.0-or-later
#include "data_host.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

static void *data_run(void *arg)
{
	struct error err = { 0 };

	if (data_server_run(arg, &err))
		fprintf(stderr, "data_server_run: %s\n", err.text);
	return NULL;
}

void data_host_start(struct data_host *h, struct net_ctx *net, const char *dir, const char *endpoint,
		     uint64_t capacity)
{
	struct data_options o = {
		.dir = dir, .meta = "inproc://meta", .endpoint = endpoint, .host = "here",
		.capacity = capacity,
	};
	struct error err = { 0 };

	h->server = data_server_open(net, &o, &err);
	if (!h->server)
		fail_msg("%s", err.text);
	assert_int_equal(data_server_bind(h->server, endpoint, &err), 0);
	assert_int_equal(pthread_create(&h->thread, NULL, data_run, h->server), 0);
	h->client = net_client_new(net, endpoint, NULL, "cli", &err);
	assert_non_null(h->client);
}

void data_host_stop(struct data_host *h)
{
	net_client_free(h->client);
	data_server_stop(h->server);
	pthread_join(h->thread, NULL);
	data_server_close(h->server);
}

static void *meta_run(void *arg)
{
	net_server_run(arg, NULL);
	return NULL;
}

void meta_host_start(struct meta_host *h, struct net_ctx *net, const struct net_server_ops *ops, void *ctx)
{
	static const uint8_t cluster[16] = { 7 };
	struct error err = { 0 };

	h->server = net_server_new(net, "meta", cluster, ops, ctx, 1000, &err);
	assert_non_null(h->server);
	assert_int_equal(net_server_bind(h->server, "inproc://meta", &err), 0);
	assert_int_equal(pthread_create(&h->thread, NULL, meta_run, h->server), 0);
}

void meta_host_stop(struct meta_host *h)
{
	net_server_stop(h->server);
	pthread_join(h->thread, NULL);
	net_server_free(h->server);
}
