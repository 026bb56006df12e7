// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "data/metas.h"

int metas_open(struct metas *m, struct net_ctx *net, const char *endpoints, const uint8_t *key,
	       struct error *err)
{
	char *text CLEANUP_FREE = strdup(endpoints), *save = NULL;

	*m = (struct metas){ 0 };
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	for (char *one = strtok_r(text, ", ", &save); one; one = strtok_r(NULL, ", ", &save)) {
		if (m->nr == MAX_METAS) {
			metas_close(m);
			return error_set(err, -E2BIG, "%s: at most %d meta servers", endpoints, MAX_METAS);
		}
		m->clients[m->nr] = net_client_new(net, one, key, "data", err);
		if (!m->clients[m->nr++]) {
			metas_close(m);
			return err && err->code ? err->code : -EIO;
		}
	}
	return m->nr ? 0 : error_set(err, -EINVAL, "no endpoint of a meta server is configured");
}

void metas_close(struct metas *m)
{
	for (size_t i = 0; i < m->nr; i++) {
		struct net_client *client = m->clients[i];

		m->clients[i] = NULL;
		net_client_free(client);
	}
	*m = (struct metas){ 0 };
}

void metas_run(struct metas *m)
{
	for (size_t i = 0; i < m->nr; i++)
		if (m->clients[i])
			net_client_run(m->clients[i], 0);
}

void metas_answered(struct metas *m, int r, const Vmdedup__Reply *header)
{
	if (m->nr && (r == -ETIMEDOUT || r == -EHOSTDOWN || (header && header->error == EHOSTDOWN)))
		m->now = (m->now + 1) % m->nr;
}
