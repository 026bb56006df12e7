/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_BASE_UUID_H
#define VMDEDUP_BASE_UUID_H

#include <stdbool.h>
#include <stdint.h>

#define UUID_TEXT_SIZE 37

struct uuid {
	uint8_t b[16];
};

int uuid_generate(struct uuid *u); /* random (version 4); -EIO when the kernel gives no bytes */
const char *uuid_to_text(const struct uuid *u, char text[UUID_TEXT_SIZE]);
int uuid_from_text(struct uuid *u, const char *text); /* -EINVAL */
bool uuid_is_null(const struct uuid *u);
bool uuid_equal(const struct uuid *a, const struct uuid *b);

#endif
