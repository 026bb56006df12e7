// SPDX-License-Identifier: GPL-2.0-or-later
/* The public key of the cluster's meta servers. */
#include <czmq.h>
#include "lib/key.h"

int cluster_server_key_load(const char *file, uint8_t key[32], struct error *err)
{
	zcert_t *cert = zcert_load(file);

	if (!cert)
		return error_set(err, -ENOENT, "cannot read the meta server's public key from %s "
				 "([curve] servers of the configuration)", file);
	memcpy(key, zcert_public_key(cert), 32);
	zcert_destroy(&cert);
	return 0;
}
