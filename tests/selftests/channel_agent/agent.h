/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * channel_agent: an agent for the kernel's tests, without any of the project's userspace. Its
 * parts, each over those before it:
 *
 *	image.c		the files that stand for images, and their heads
 *	call.c		the ioctls, one to one
 *	fault.c		wrong answers, and places to die
 *	answer.c	what comes for an upcall
 *	push.c		CUT, LIST_CUT, merge, COMMIT
 *	hostile.c	calls that must all be refused
 *	command.c	what `ctl` may ask for
 *	main.c		the loop
 *
 * One thread; functions return 0 or a negative errno.
 */
#ifndef CHANNEL_AGENT_H
#define CHANNEL_AGENT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <linux/dm-dedup.h>
#include "../../stamps.h"

#define MAX_IMAGES	512
#define MAX_HELD	4096
#define MAX_KNOWN	65536

struct image {
	const char *name;
	const char *file;
	int fd;
	uint64_t size;
	uint64_t epoch, cut, version;
	int error;
	uint64_t uuid;
};

struct known {
	uint64_t hash, slot, seq;
};

struct agent {
	int fd, window, sock;
	struct dm_dedup_hello hello;
	uint32_t block;
	struct image images[MAX_IMAGES];
	int nr_images;
	bool hold, hold_open, use_map, use_zero, faults, keep, keep_changes, quit;
	bool recover; /* CUTs of what is fenced or diverged */
	FILE *changes; /* the file for what the version being merged changes */
	uint32_t source;
	char die_at[16];
	uint64_t wrong_tried, wrong_taken;
	struct dm_dedup_upcall held[MAX_HELD];
	int nr_held;
	struct known known[MAX_KNOWN];
	FILE *out; /* of the command that is being carried out */
};

void die(const char *fmt, ...);

/* image.c */
void head_save(const struct image *im);
void image_add(struct agent *a, char *arg);
struct image *image_by_name(struct agent *a, const char *name);
struct image *image_by_uuid(struct agent *a, const uint8_t uuid[16]);
void image_resize(struct image *im);
void image_uuid(const struct image *im, uint8_t uuid[16]);
void image_root(const struct image *im, uint64_t version, uint8_t root[DM_DEDUP_FP_SIZE]);
int image_read(const struct image *im, uint64_t block, uint32_t bs, uint8_t *buf);
int image_read_root(const struct image *im, const uint8_t root[DM_DEDUP_FP_SIZE], uint64_t block,
		    uint32_t bs, uint8_t *buf);
int image_keep(const struct image *im);

/* call.c */
int call(struct agent *a, unsigned long cmd, void *arg);
int batch(struct agent *a, unsigned long cmd, struct dm_dedup_batch *b, void *entries,
	  uint32_t entry_size, uint32_t count);
int hello(struct agent *a);
int do_cut(struct agent *a, uint64_t volume, struct dm_dedup_cut *cut);
int find_volume(struct agent *a, const char *what, struct dm_dedup_volume_info *info);

/* fault.c */
void step(struct agent *a, const char *name);
void wrong_answers(struct agent *a, const struct dm_dedup_upcall *up, void *data);
void late_answers(struct agent *a, const struct dm_dedup_upcall *up, void *data);
int cmd_faults(struct agent *a);

/* answer.c */
void make_fp(uint64_t hash, uint8_t fp[DM_DEDUP_FP_SIZE]);
void fill_publish(struct agent *a, const struct dm_dedup_upcall *up, const void *data,
		  struct dm_dedup_publish *p);
void fill_map(const struct dm_dedup_upcall *up, struct dm_dedup_map *m);
void handle_upcall(struct agent *a, const struct dm_dedup_upcall *up);
void answer_held(struct agent *a, int error);
int cmd_warm(struct agent *a, char **argv);

/* push.c */
int cmd_list(struct agent *a, const char *what, uint64_t cut);
int cmd_push(struct agent *a, const char *what, bool commit);
int cmd_stage(struct agent *a, const char *what);
int cmd_commit(struct agent *a, char **argv);
int cmd_replace(struct agent *a, char **argv);

/* hostile.c */
int cmd_hostile(struct agent *a);

/* command.c */
int run_command(struct agent *a, int argc, char **argv);

#endif
