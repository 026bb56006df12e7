// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdbool.h>
#include <string.h>

#include "proto/limits.h"

static bool is_alnum(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

const char *image_name_check(const char *name)
{
	size_t len = name ? strnlen(name, IMAGE_NAME_MAX + 1) : 0;

	if (!len)
		return "an image name must not be empty";
	if (len > IMAGE_NAME_MAX)
		return "an image name must not be longer than 255 bytes";
	if (*name == '-' || *name == '.')
		return "an image name must not start with '-' or '.'";
	for (size_t i = 0; i < len; i++) {
		if (name[i] == '/')
			return "an image name must not contain a slash";
		if (!is_alnum(name[i]) && !strchr("._-+:@", name[i]))
			return "an image name may contain only letters, digits and . _ - + : @";
	}
	return NULL;
}
