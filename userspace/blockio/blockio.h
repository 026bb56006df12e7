/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where images come from and go to: a source is a raw file, a block device, or anything that
 * qemu-nbd or an NBD server serves; a sink is a sparse file that appears whole or not at all,
 * or a block device.
 */
#ifndef VMDEDUP_BLOCKIO_H
#define VMDEDUP_BLOCKIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

struct source;

/*
 * @what: a path or an NBD URI (nbd://, nbds://, nbd+unix://, ...). @format: "raw", or a format of
 * qemu-nbd's ("qcow2", "vmdk", ...); NULL: told by the content, raw when nothing is recognised.
 * An image that is empty, too large or not a multiple of 512 bytes is refused. The error text
 * carries qemu-nbd's own words.
 */
struct source *source_open(const char *what, const char *format, struct error *err);
void source_close(struct source *s);
uint64_t source_size(const struct source *s);
const char *source_format(const struct source *s);
/* @len bytes from @offset on are all data, or (*data false) all known to be zeros. @offset is
 * below the size. One thread at a time. */
int source_extent(struct source *s, uint64_t offset, uint64_t *len, bool *data, struct error *err);
/* Reads all of it or fails. Any number of threads. */
int source_pread(struct source *s, void *data, size_t len, uint64_t offset, struct error *err);

struct sink;

/* Nothing is at @path before sink_commit(), which makes it durable. With @force it replaces a
 * file that is there; a block device is written in place and needs @force. */
struct sink *sink_open(const char *path, uint64_t size, bool force, struct error *err);
/* Any number of threads, for parts that do not overlap. What is never written reads as zeros;
 * sink_zero() must be called for it all the same (a device holds something else before). */
int sink_pwrite(struct sink *s, const void *data, size_t len, uint64_t offset, struct error *err);
int sink_zero(struct sink *s, uint64_t len, uint64_t offset, struct error *err);
int sink_commit(struct sink *s, struct error *err);
void sink_close(struct sink *s); /* without a commit: a file leaves nothing behind */

#endif
