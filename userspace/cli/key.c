// SPDX-License-Identifier: GPL-2.0-or-later
/* CURVE key pairs as certificate files (zcert), as every daemon reads them. */
#include <czmq.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cli/key.h"

int key_pair_create(const char *path, struct error *err)
{
	char *secret;
	zcert_t *cert;
	mode_t mask;
	int r = 0;

	if (asprintf(&secret, "%s_secret", path) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (!access(path, F_OK) || !access(secret, F_OK)) {
		r = error_set(err, -EEXIST, "%s or %s exists: a key that is in use must not be lost",
			      path, secret);
		goto free_secret;
	}
	cert = zcert_new();
	if (!cert) {
		r = error_set(err, -ENOMEM, "cannot make a key: no memory or no random numbers");
		goto free_secret;
	}
	mask = umask(077);
	if (zcert_save_public(cert, path) || zcert_save_secret(cert, secret))
		r = error_set(err, -errno, "cannot write %s: %s", path, strerror(errno));
	umask(mask);
	if (!r && chmod(path, 0644))
		r = error_set(err, -errno, "cannot make %s readable: %s", path, strerror(errno));
	zcert_destroy(&cert);
free_secret:
	free(secret);
	return r;
}
