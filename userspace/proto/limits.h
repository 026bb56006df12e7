/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The bounds that every decoder and every server enforces. */
#ifndef VMDEDUP_PROTO_LIMITS_H
#define VMDEDUP_PROTO_LIMITS_H

#define PROTO_VERSION	      1
#define PROTO_MAX_HEADER      (1U << 20)	      /* bytes of a header frame */
#define PROTO_MAX_FRAMES      256	      /* payload frames of one message */
#define PROTO_MAX_FRAME	      ((1U << 20) + 4096) /* bytes of one payload frame */
#define PROTO_MAX_PAYLOAD     (64U << 20)     /* payload bytes of one message */
#define PROTO_MAX_REPLICAS 4
#define PROTO_MAX_PLACES   8 /* of a shard in the map, while it moves */
#define PROTO_MAX_BLOCKS      256	      /* blocks of one PUT or GET */
#define PROTO_MAX_TOUCH	      4096	      /* fingerprints of one TOUCH */
#define PROTO_MAX_NODES	      256	      /* nodes of one part or one NODE_GET */
#define PROTO_MAX_LIST	      1000	      /* entries of one list reply */
#define BLOCK_SHIFT_MIN	      12
#define BLOCK_SHIFT_MAX	      20
#define BLOCK_SHIFT_DEFAULT   18
#define IMAGE_NAME_MAX	      255	      /* bytes; see image_name_check() */
#define IMAGE_SIZE_MAX	      (64ULL << 40)

#include <stddef.h>
/* An image name: 1 to 255 bytes of [A-Za-z0-9._-+:@], not starting with '-' or '.'.
 * Returns NULL, or one sentence that says what is wrong with it. */
const char *image_name_check(const char *name);

#endif
