// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * disk: a disk for a virtual machine that records every write in the order of its arrival
 *
 *	disk [-k|-K ENTRIES] FILE SOCKET ACK-SOCKET LOG
 *
 * Serves the content of FILE over NBD on SOCKET, and a disk of 64 sectors for acknowledgements on
 * ACK-SOCKET: what is written there gets into the same log. FILE is not written to: what a
 * crash leaves is made of FILE and LOG (tests/crash/replay.c). Ends when the machine has gone.
 *
 *	-k ENTRIES	kills the machine (with SIGKILL) when so many entries have been logged
 *			after the first acknowledgement
 *	-K ENTRIES	likewise, after the first write
 *
 * Requests complete out of order and late: a write is held back while others arrive, so that who
 * does not wait for it before he flushes is found out.
 */
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "log.h"

#define ACK_BYTES   (64 * 512)
#define MAX_PENDING 16
#define MAX_REQUEST (32U << 20)

/* The NBD protocol, as far as QEMU speaks it. */
#define NBD_OPTION_MAGIC  0x49484156454f5054ULL
#define NBD_REPLY_MAGIC   0x0003e889045565a9ULL
#define NBD_OPT_EXPORT	  1
#define NBD_OPT_ABORT	  2
#define NBD_OPT_INFO	  6
#define NBD_OPT_GO	  7
#define NBD_REP_ACK	  1
#define NBD_REP_INFO	  3
#define NBD_REP_ERR_UNSUP 0x80000001U
#define NBD_FLAGS	  (1 | 1 << 2) /* has flags, takes flushes */
#define NBD_REQUEST	  0x25609513U
#define NBD_ANSWER	  0x67446698U

enum { CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH };

struct __attribute__((packed)) nbd_option {
	uint64_t magic;
	uint32_t option;
	uint32_t len;
};

struct __attribute__((packed)) nbd_option_reply {
	uint64_t magic;
	uint32_t option;
	uint32_t type;
	uint32_t len;
};

struct __attribute__((packed)) nbd_request {
	uint32_t magic;
	uint16_t flags;
	uint16_t type;
	uint64_t handle;
	uint64_t offset;
	uint32_t len;
};

struct __attribute__((packed)) nbd_answer {
	uint32_t magic;
	uint32_t error;
	uint64_t handle;
};

struct __attribute__((packed)) nbd_export {
	uint16_t info;
	uint64_t bytes;
	uint16_t flags;
};

struct pending {
	uint64_t handle;
	uint64_t id;
	bool flush;
};

struct export {
	int fd;
	uint8_t *data;
	uint64_t bytes;
	bool ack;
};

struct disk {
	struct export exports[2];
	struct pending pending[MAX_PENDING];
	unsigned int nr_pending;
	FILE *log;
	uint64_t next_id;
	uint64_t kill_after; /* entries left; 0: never */
	bool acked;	     /* or that does not matter */
	pid_t machine;
	uint64_t rng;
	uint8_t *buf;
};

static void die(const char *what)
{
	fprintf(stderr, "disk: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t random64(struct disk *d)
{
	uint64_t z = d->rng += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

/* ---- the log ---- */

static void log_add(struct disk *d, uint32_t kind, uint64_t id, uint64_t offset, const void *data,
		    uint32_t len)
{
	struct log_entry e = { .kind = kind, .len = len, .id = id, .offset = offset };

	if (fwrite(&e, sizeof(e), 1, d->log) != 1 || (len && fwrite(data, len, 1, d->log) != 1))
		die("the log");
	if (kind == LOG_ACK)
		d->acked = true;
	if (!d->acked || !d->kill_after || --d->kill_after)
		return;
	/* Nothing of what was in flight is answered or taken any more. */
	kill(d->machine, SIGKILL);
	e = (struct log_entry){ .kind = LOG_KILLED };
	if (fwrite(&e, sizeof(e), 1, d->log) != 1 || fclose(d->log))
		die("the log");
	exit(0);
}

/* ---- the wire ---- */

/* False: the other side has gone. */
static bool get(int fd, void *buf, size_t n)
{
	char *p = buf;

	while (n) {
		ssize_t r = read(fd, p, n);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return false;
		p += r;
		n -= r;
	}
	return true;
}

static void put(int fd, const void *buf, size_t n)
{
	const char *p = buf;

	while (n) {
		ssize_t r = send(fd, p, n, MSG_NOSIGNAL);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return; /* the next read finds out */
		p += r;
		n -= r;
	}
}

static void put_option_reply(int fd, uint32_t option, uint32_t type, const void *data, uint32_t len)
{
	struct nbd_option_reply r = { htobe64(NBD_REPLY_MAGIC), htobe32(option), htobe32(type),
				      htobe32(len) };

	put(fd, &r, sizeof(r));
	put(fd, data, len);
}

static void handshake(const struct export *e)
{
	struct nbd_export info = { 0, htobe64(e->bytes), htobe16(NBD_FLAGS) };
	struct nbd_option o;
	uint32_t flags;
	char data[4096];
	uint16_t server = htobe16(3); /* fixed newstyle, no zeroes */

	put(e->fd, "NBDMAGICIHAVEOPT", 16);
	put(e->fd, &server, sizeof(server));
	if (!get(e->fd, &flags, sizeof(flags)))
		die("handshake");
	for (;;) {
		if (!get(e->fd, &o, sizeof(o)) || be64toh(o.magic) != NBD_OPTION_MAGIC ||
		    be32toh(o.len) > sizeof(data) || !get(e->fd, data, be32toh(o.len)))
			die("handshake");
		switch (be32toh(o.option)) {
		case NBD_OPT_EXPORT:
			put(e->fd, &info.bytes, sizeof(info) - sizeof(info.info));
			return;
		case NBD_OPT_INFO:
		case NBD_OPT_GO:
			put_option_reply(e->fd, be32toh(o.option), NBD_REP_INFO, &info, sizeof(info));
			put_option_reply(e->fd, be32toh(o.option), NBD_REP_ACK, NULL, 0);
			if (be32toh(o.option) == NBD_OPT_GO)
				return;
			break;
		case NBD_OPT_ABORT:
			exit(0);
		default:
			put_option_reply(e->fd, be32toh(o.option), NBD_REP_ERR_UNSUP, NULL, 0);
		}
	}
}

static void answer(const struct export *e, uint64_t handle, int error, const void *data,
		   uint32_t len)
{
	struct nbd_answer a = { htobe32(NBD_ANSWER), htobe32(error), handle };

	put(e->fd, &a, sizeof(a));
	put(e->fd, data, len);
}

/* ---- requests ---- */

static void complete_one(struct disk *d)
{
	unsigned int i = random64(d) % d->nr_pending;
	struct pending p = d->pending[i];

	d->pending[i] = d->pending[--d->nr_pending];
	/* Logged before anybody can know. */
	log_add(d, p.flush ? LOG_FLUSHED : LOG_WRITTEN, p.id, 0, NULL, 0);
	answer(&d->exports[0], p.handle, 0, NULL, 0);
}

static void hold(struct disk *d, uint64_t handle, bool flush)
{
	if (d->nr_pending == MAX_PENDING)
		complete_one(d);
	d->pending[d->nr_pending++] = (struct pending){ handle, d->next_id, flush };
}

static void do_write(struct disk *d, struct export *e, const struct nbd_request *q,
		     uint64_t offset, uint32_t len)
{
	memcpy(e->data + offset, d->buf, len);
	if (e->ack) {
		log_add(d, LOG_ACK, 0, offset, d->buf, len);
		answer(e, q->handle, 0, NULL, 0);
		return;
	}
	log_add(d, LOG_WRITE, ++d->next_id, offset, d->buf, len);
	hold(d, q->handle, false);
}

static void do_flush(struct disk *d, struct export *e, const struct nbd_request *q)
{
	if (e->ack) {
		answer(e, q->handle, 0, NULL, 0);
		return;
	}
	log_add(d, LOG_FLUSH, ++d->next_id, 0, NULL, 0);
	hold(d, q->handle, true);
}

/* False: the machine has gone. */
static bool serve_one(struct disk *d, struct export *e)
{
	struct nbd_request q;
	uint64_t offset;
	uint32_t len;
	uint16_t type;

	if (!get(e->fd, &q, sizeof(q)))
		return false;
	type = be16toh(q.type);
	offset = be64toh(q.offset);
	len = be32toh(q.len);
	if (be32toh(q.magic) != NBD_REQUEST || len > MAX_REQUEST ||
	    (type == CMD_WRITE && !get(e->fd, d->buf, len)))
		return false;
	if (type == CMD_DISC)
		return false;
	if (type > CMD_FLUSH || offset > e->bytes || len > e->bytes - offset)
		answer(e, q.handle, EINVAL, NULL, 0);
	else if (type == CMD_READ)
		answer(e, q.handle, 0, e->data + offset, len);
	else if (type == CMD_WRITE)
		do_write(d, e, &q, offset, len);
	else
		do_flush(d, e, &q);
	return true;
}

static void serve(struct disk *d)
{
	struct timespec a_moment = { .tv_nsec = 30000 };

	for (;;) {
		struct pollfd p[2] = { { .fd = d->exports[0].fd, .events = POLLIN },
				       { .fd = d->exports[1].fd, .events = POLLIN } };
		int n = ppoll(p, 2, d->nr_pending ? &a_moment : NULL, NULL);

		if (n < 0 && errno != EINTR)
			die("poll");
		if (!n)
			complete_one(d);
		for (int i = 0; i < 2 && n > 0; i++)
			if (p[i].revents && !serve_one(d, &d->exports[i]))
				return;
	}
}

/* ---- start ---- */

static int listen_on(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	if (strlen(path) >= sizeof(sa.sun_path)) {
		errno = ENAMETOOLONG;
		die(path);
	}
	strcpy(sa.sun_path, path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) || listen(fd, 1))
		die(path);
	return fd;
}

static void load(struct export *e, const char *file)
{
	FILE *f = fopen(file, "r");
	struct stat st;

	if (!f || fstat(fileno(f), &st))
		die(file);
	e->bytes = st.st_size;
	e->data = malloc(e->bytes);
	if (!e->data || fread(e->data, e->bytes, 1, f) != 1)
		die(file);
	fclose(f);
}

static void accept_machine(struct disk *d, const int *listeners)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	for (int i = 0; i < 2; i++) {
		struct export *e = &d->exports[i];

		e->fd = accept(listeners[i], NULL, NULL);
		if (e->fd < 0)
			die("accept");
		handshake(e);
	}
	if (getsockopt(d->exports[0].fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		die("the machine's process");
	d->machine = peer.pid;
}

int main(int argc, char **argv)
{
	static struct disk d;
	uint64_t magic = LOG_MAGIC;
	int listeners[2];
	int opt;

	while ((opt = getopt(argc, argv, "k:K:")) == 'k' || opt == 'K') {
		d.kill_after = strtoull(optarg, NULL, 0);
		d.acked = opt == 'K';
	}
	if (opt != -1 || argc - optind != 4) {
		fprintf(stderr, "usage: disk [-k|-K ENTRIES] FILE SOCKET ACK-SOCKET LOG\n");
		return 2;
	}
	load(&d.exports[0], argv[optind]);
	d.exports[1] = (struct export){ .data = calloc(1, ACK_BYTES), .bytes = ACK_BYTES,
					.ack = true };
	d.buf = malloc(MAX_REQUEST);
	d.log = fopen(argv[optind + 3], "w");
	if (!d.exports[1].data || !d.buf || !d.log || fwrite(&magic, sizeof(magic), 1, d.log) != 1)
		die(argv[optind + 3]);
	d.rng = d.kill_after;
	listeners[0] = listen_on(argv[optind + 1]);
	listeners[1] = listen_on(argv[optind + 2]);
	accept_machine(&d, listeners);
	serve(&d);
	if (fclose(d.log))
		die("the log");
	return 0;
}
