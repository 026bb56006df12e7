/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_LIB_KEY_H
#define VMDEDUP_LIB_KEY_H

#include <stdint.h>
#include "base/error.h"

/* The public key in a certificate file (zcert). -ENOENT. */
int cluster_server_key_load(const char *file, uint8_t key[32], struct error *err);

#endif
