/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Errors that a person can act on. A function that can fail returns 0 or a negative errno and
 * takes `struct error *err` last (may be NULL): what was being done, to what, what to do.
 */
#ifndef VMDEDUP_BASE_ERROR_H
#define VMDEDUP_BASE_ERROR_H

#define ERROR_TEXT_SIZE 768

struct error {
	int code; /* negative errno, 0: none */
	char text[ERROR_TEXT_SIZE];
};

/* Sets code and text, and returns code, so that `return error_set(err, -EINVAL, ...)` works. */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Puts "what: " in front of the text that is there. Returns err->code. */
int error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
