/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Rows of `images`, `leases` and roots, for the handlers that work on them. */
#ifndef VMDEDUP_META_IMAGE_H
#define VMDEDUP_META_IMAGE_H

#include "meta/core.h"

struct image {
	struct uuid uuid;
	char name[IMAGE_NAME_MAX + 1];
	uint32_t domain;
	uint64_t size;
	struct fp root;
	uint64_t head_epoch, head_cut, head_version;
	struct fp head_parent;
	uint64_t lease_epoch;
	uint64_t last_version, versions;
	uint64_t created_s, changed_s;
};

struct lease {
	struct uuid image;
	uint64_t epoch;
	enum lease_state state;
	struct uuid cache;
	char host[META_MAX_TEXT + 1];
	char name[IMAGE_NAME_MAX + 1];
	uint32_t domain;
	uint64_t size;
	struct fp root, parent_root;
	uint64_t cut;
	uint64_t since_s;
};

/* -ENOENT with a text when there is none (or when it is removed). */
int image_by_name(struct meta_call *c, const char *name, struct image *im);
int image_by_uuid(struct meta_call *c, const struct uuid *uuid, struct image *im);
/* By uuid when the field is set, else by name. */
int image_find(struct meta_call *c, const char *name, const ProtobufCBinaryData *uuid,
	       struct image *im);
/* -EINVAL with image_name_check()'s text; -EEXIST when an image has the name. */
int image_name_free(struct meta_call *c, const char *name);
/* A new row and the count on its root. uuid, created_s and changed_s are filled in. */
int image_insert(struct meta_call *c, struct image *im);
/* Moves the head: counts the new root before the old one is given back; writes all head_*,
 * changed_s, versions, last_version and lease_epoch. */
int image_set_head(struct meta_call *c, struct image *im, const struct fp *root);
/* Makes a numbered version of the head; the caller writes the image's row (image_set_head). */
int image_add_version(struct meta_call *c, struct image *im, const char *label);
/* 1: the head is what a resize has made of @parent, on which the active lease stands. resize.c */
int image_has_grown(struct meta_call *c, const struct image *im, const struct fp *parent);
/* The head_cut of the current lease_epoch. */
uint64_t image_epoch_cut(const struct image *im);
/* Fills in reply.image. @v NULL: the head. */
struct version {
	uint64_t number;
	struct fp root;
	uint64_t size;
	uint64_t created_s;
	char label[META_MAX_TEXT + 1];
};
int image_reply(struct meta_call *c, const struct image *im, const struct version *v);
int version_load(struct meta_call *c, const struct image *im, uint64_t number, struct version *v);

/* 1 and *l: the image's active lease; 0: none. */
int lease_active(struct meta_call *c, const struct uuid *image, struct lease *l);
/* The image of whoever says that it holds its lease of @epoch. Without the image that lease is over as
 * well, and the holder has to learn that: -ESTALE. */
int lease_image(struct meta_call *c, const struct uuid *image, uint64_t epoch, struct image *im);
/* -EBUSY naming the holder when the image is leased. @what: "removed", ... */
int lease_none(struct meta_call *c, const struct image *im, const char *what);
/* The lease's base moves on with a commit: @root is counted, its parent's parent given back. */
int lease_advance(struct meta_call *c, struct lease *l, const struct fp *root, uint64_t cut);

/* ---- nodes.c: counts ---- */
/* One count up on a live node, down on any. The zero root counts nothing. */
int node_ref(struct meta_call *c, uint32_t domain, const struct fp *hash);
int node_unref(struct meta *m, uint32_t domain, const struct fp *hash, uint64_t n,
	       struct error *err);
/* What PushPart does with one node; see nodes.c. */
struct node_put {
	struct meta_call *c;
	uint64_t push;
	uint32_t domain;
	uint64_t new_nodes; /* out: how many the push owns now that it did not before */
	struct fp *missing, *redo;
	size_t nr_missing, nr_redo; /* beyond META_MAX_REDO only the numbers go up */
};
int node_put(struct node_put *p, const struct fp *hash, const void *data, size_t len,
	     unsigned int max_level);
/* 1: @root is the zero root or a live node of an image of @size; 0: unknown or dying. -EINVAL:
 * of another shape. */
int node_is_root(struct meta_call *c, uint32_t domain, const struct fp *root, uint64_t size);

/* ---- receipts.c ---- */
/* Records the receipts that count; the rest is as if it had not been brought. -EBADMSG when one
 * is not authentic. *added: rows */
int receipts_record(struct meta_call *c, uint64_t push, uint32_t domain,
		    Vmdedup__Receipt **receipts, size_t nr, uint64_t *added);
/* For each of the @n fingerprints: does the push hold a receipt of the current epoch? */
int receipts_cover(struct meta_call *c, uint64_t push, const struct fp *fps, size_t n,
		   bool *covered);
/* At the commit: blocks whose disks have gone since. Appends to @redo. */
int receipts_recheck(struct meta_call *c, uint64_t push, struct fp *redo, size_t *nr_redo);

#endif
