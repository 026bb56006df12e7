// SPDX-License-Identifier: GPL-2.0-or-later
/* Sizes as people write and read them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/config.h"

static const char units[] = "KMGTPE";

/* The shift that "", "B", "K", "KB", "KiB", "k" ... mean, or -1. */
static int unit_shift(const char *s)
{
	const char *u;
	int shift = 0;

	if (*s && *s != 'B') {
		char c = *s >= 'a' && *s <= 'z' ? *s - 'a' + 'A' : *s;

		u = strchr(units, c);
		if (!u)
			return -1;
		shift = 10 * (int)(u - units + 1);
		s++;
		if (*s == 'i' && s[1] != 'B')
			return -1;
		if (*s == 'i')
			s++;
	}
	if (*s == 'B')
		s++;
	return *s ? -1 : shift;
}

int size_from_text(const char *text, uint64_t *bytes)
{
	unsigned __int128 whole = 0, frac = 0, scale = 1;
	const char *s = text;
	int shift;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	for (; *s >= '0' && *s <= '9'; s++) {
		whole = whole * 10 + (*s - '0');
		if (whole > UINT64_MAX)
			return -ERANGE;
	}
	if (*s == '.') {
		s++;
		if (*s < '0' || *s > '9')
			return -EINVAL;
		for (; *s >= '0' && *s <= '9'; s++)
			if (scale < 1000000000) {
				frac = frac * 10 + (*s - '0');
				scale *= 10;
			}
	}
	if (*s == ' ')
		s++;
	shift = unit_shift(s);
	if (shift < 0)
		return -EINVAL;
	/* A fraction of a byte is a mistake, not a size. */
	if (frac && !shift)
		return -EINVAL;
	whole = (whole << shift) + (frac << shift) / scale;
	if (whole > UINT64_MAX)
		return -ERANGE;
	*bytes = whole;
	return 0;
}

const char *size_to_text(uint64_t bytes, char text[32])
{
	int unit = -1;
	double v = bytes;

	/* 1023.95 would print as 1024.0 */
	while (v >= (unit < 0 ? 1024 : 1023.95) && units[unit + 1]) {
		v /= 1024;
		unit++;
	}
	if (unit < 0)
		snprintf(text, 32, "%llu B", (unsigned long long)bytes);
	else
		snprintf(text, 32, "%.1f %ciB", v, units[unit]);
	return text;
}
