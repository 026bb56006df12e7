/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_CLI_KEY_H
#define VMDEDUP_CLI_KEY_H

#include "base/error.h"

/* Writes a new public key to @path and the pair to @path_secret. -EEXIST: one is there. */
int key_pair_create(const char *path, struct error *err);

#endif
