// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * channel_agent: an agent for the kernel's tests
 *
 *	channel_agent serve [-h] [-m] [-v] [-z] [-f] [-k] [-s SOURCE] CACHE-UUID:CACHE-DEVICE SOCKET NAME=FILE...
 *	channel_agent ctl SOCKET COMMAND [ARGUMENT...]
 *
 * serve opens the cache's channel and answers for images that are plain files. A file is its
 * image's head, its length the image's; FILE.head keeps epoch, committed cut and version over
 * restarts of the agent.
 *
 *	-h	holds FETCHes back until the command `answer`
 *	-m	answers with MAP where a CLEAN slot with the content is known
 *	-v	keeps in FILE.N what version N changed: (64-bit number, content) of each block
 *	-z	answers with MAP ZERO where the block is all zeros
 *	-s	says with PUBLISH that the block is from SOURCE (enum dm_dedup_source)
 *	-f	gives wrong answers before each right one, and late ones after it
 *	-k	keeps each version, in FILE.vN, and answers for old roots from there
 *
 * ctl sends a command, prints what comes back, and exits with 0 for "ok", else with 1. Numbers of
 * volumes may be given as names. Commands:
 *
 *	volumes			records: id name flags committed closed dirty_bytes epoch
 *	cut VOLUME		prints the cut
 *	list VOLUME CUT		prints block slot seq flags base_kind and how many sectors are valid
 *	push VOLUME		CUT, LIST_CUT, merges into the file, COMMIT
 *	merge VOLUME		the same without the COMMIT, as if the agent had died before it
 *	stage VOLUME		CUT and the replacements, without the head and the COMMIT
 *	commit VOLUME CUT VERSION	an empty COMMIT with that root
 *	replace VOLUME CUT BLOCK SLOT SEQ	stages that CLEAN slot as the block's new base
 *	recover VOLUME		a push of a volume that is fenced or diverged
 *	release VOLUME [discard|EPOCH]; fence VOLUME [EPOCH]
 *	warm NAME FIRST COUNT	PUBLISHes these blocks of an image without a volume
 *	clean			prints slot seq of each CLEAN slot
 *	drop SLOT SEQ; dropall	of what is CLEAN
 *	waiting			how many upcalls are held back
 *	hold, hold-open, answer	from now on holds FETCHes, OPENs back; answers all
 *	fail ERRNO		answers FETCHes that are held back with FAIL
 *	faults			how many wrong answers there were; fails if the kernel took one
 *	die STEP		dies as soon as it comes to lookup, open, fetch (before the answer),
 *				publish (after it), cut, list, merge, head, stage, commit, warm,
 *				give (before RELEASE) or release (after it)
 *	set NAME epoch|cut|version|error|uuid N	what the head says; error: of OPEN
 *	hostile			calls that must all be refused; prints those that were not
 *	hello			another HELLO: what was sent comes again
 *	quit
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "agent.h"

static void read_upcalls(struct agent *a)
{
	struct dm_dedup_upcall ups[16];
	ssize_t n = read(a->fd, ups, sizeof(ups));

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		die("read");
	for (ssize_t i = 0; i < n / (ssize_t)sizeof(ups[0]); i++)
		handle_upcall(a, &ups[i]);
}

static void handle_control(struct agent *a)
{
	char line[4096], *argv[8];
	int fd = accept(a->sock, NULL, NULL), argc = 0, r;
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);

	if (n <= 0) {
		close(fd);
		return;
	}
	line[n] = 0;
	for (char *p = strtok(line, "\n"); p && argc < 8; p = strtok(NULL, "\n"))
		argv[argc++] = p;
	a->out = fdopen(fd, "w");
	r = argc ? run_command(a, argc, argv) : -EINVAL;
	if (r)
		fprintf(a->out, "error %d %s\n", -r, strerror(-r));
	else
		fprintf(a->out, "ok\n");
	fclose(a->out);
}

static int listen_on(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) || listen(fd, 8))
		die("%s", path);
	return fd;
}

/* The dedup-cache device, to read slots through. */
static void open_window(struct agent *a, const char *path)
{
	a->window = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (a->window < 0)
		die("%s", path);
}

static int serve(int argc, char **argv)
{
	static struct agent a;
	char path[128];
	int opt, r;

	while ((opt = getopt(argc, argv, "hmvzfks:")) != -1) {
		a.hold |= opt == 'h';
		a.use_map |= opt == 'm';
		a.use_zero |= opt == 'z';
		a.keep_changes |= opt == 'v';
		a.faults |= opt == 'f';
		a.keep |= opt == 'k';
		if (opt == 's')
			a.source = atoi(optarg);
	}
	argc -= optind;
	argv += optind;
	if (argc < 3)
		return 2;
	/* CACHE-UUID[:WINDOW] */
	if (strchr(argv[0], ':')) {
		open_window(&a, strchr(argv[0], ':') + 1);
		*strchr(argv[0], ':') = 0;
	}
	snprintf(path, sizeof(path), "/dev/dm-dedup/%s", argv[0]);
	a.fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (a.fd < 0)
		die("%s", path);
	for (int i = 2; i < argc; i++)
		image_add(&a, argv[i]);
	r = hello(&a);
	if (r) {
		errno = -r;
		die("HELLO");
	}
	a.block = 1U << a.hello.block_shift;
	a.sock = listen_on(argv[1]);
	while (!a.quit) {
		struct pollfd p[2] = { { .fd = a.fd, .events = POLLIN },
				       { .fd = a.sock, .events = POLLIN } };

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (p[1].revents & POLLIN)
			handle_control(&a);
		if (p[0].revents & (POLLERR | POLLHUP))
			return 3;
		if (p[0].revents & POLLIN)
			read_upcalls(&a);
	}
	return 0;
}

static int ctl(int argc, char **argv)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char line[4096] = "", last[64] = "";
	FILE *f;

	if (argc < 3)
		return 2;
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", argv[1]);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		die("%s", argv[1]);
	for (int i = 2; i < argc; i++) {
		strncat(line, argv[i], sizeof(line) - strlen(line) - 2);
		strcat(line, "\n");
	}
	if (write(fd, line, strlen(line)) < 0)
		die("write");
	f = fdopen(fd, "r");
	while (f && fgets(line, sizeof(line), f)) {
		snprintf(last, sizeof(last), "%.63s", line);
		if (strcmp(line, "ok\n"))
			fputs(line, stdout);
	}
	return strcmp(last, "ok\n") ? 1 : 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc > 1 && !strcmp(argv[1], "serve"))
		return serve(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "ctl"))
		return ctl(argc - 1, argv + 1);
	fprintf(stderr, "usage: channel_agent serve|ctl ...\n");
	return 2;
}
