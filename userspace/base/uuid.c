// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/uuid.h"

int uuid_generate(struct uuid *u)
{
	ssize_t n;

	do
		n = getrandom(u->b, sizeof(u->b), 0);
	while (n < 0 && errno == EINTR);
	if (n != sizeof(u->b))
		return -EIO;
	u->b[6] = (u->b[6] & 0x0f) | 0x40;
	u->b[8] = (u->b[8] & 0x3f) | 0x80;
	return 0;
}

const char *uuid_to_text(const struct uuid *u, char text[UUID_TEXT_SIZE])
{
	const uint8_t *b = u->b;

	snprintf(text, UUID_TEXT_SIZE,
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
		 b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
		 b[15]);
	return text;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int uuid_from_text(struct uuid *u, const char *text)
{
	struct uuid v;
	size_t n = 0;

	if (strnlen(text, UUID_TEXT_SIZE) != UUID_TEXT_SIZE - 1)
		return -EINVAL;
	for (size_t i = 0; i < UUID_TEXT_SIZE - 1;) {
		int hi, lo;

		if (i == 8 || i == 13 || i == 18 || i == 23) {
			if (text[i++] != '-')
				return -EINVAL;
			continue;
		}
		hi = hex_digit(text[i]);
		lo = hex_digit(text[i + 1]);
		if (hi < 0 || lo < 0)
			return -EINVAL;
		v.b[n++] = hi << 4 | lo;
		i += 2;
	}
	*u = v;
	return 0;
}

bool uuid_is_null(const struct uuid *u)
{
	static const struct uuid null;

	return uuid_equal(u, &null);
}

bool uuid_equal(const struct uuid *a, const struct uuid *b)
{
	return !memcmp(a, b, sizeof(*a));
}
