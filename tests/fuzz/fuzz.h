/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A fuzz target is one file, tests/fuzz/NAME_fuzz.c, with these two functions. It is linked with
 * libFuzzer (`make fuzz`, needs clang) or with standalone.c, which mutates the seeds by itself
 * and runs with the unit tests.
 */
#ifndef VMDEDUP_TESTS_FUZZ_H
#define VMDEDUP_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Any bytes: must neither crash nor leak. Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* The @n-th well-formed input; returns its length, at most @room; 0: there are no more. */
size_t fuzz_seed(size_t n, uint8_t *out, size_t room);

#define FUZZ_CHECK(x)                                                                              \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #x);          \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#endif
