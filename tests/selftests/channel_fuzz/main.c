// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * channel_fuzz agents CACHE-UUID SAFE-FILE CALLS SEED
 * channel_fuzz guard DEVICE FILE SECONDS SEED
 *
 * agents opens the channel again and again, until CALLS random calls have been made, and more until some
 * of each important kind were not refused. Each agent makes some hundreds of them, from two threads
 * while others change their arguments under them, and dies by SIGKILL in their midst. It answers
 * FETCHes of the volume `safe` rightly, with what SAFE-FILE holds, and those of others in one of many
 * ways. Where the kernel can fail allocations on demand (/sys/kernel/debug/failslab) those of the
 * random calls fail now and then.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "fuzz.h"

/* How many calls an agent makes at most before it dies. */
#define MOST_CALLS	1000
/* How many times as many calls are made at most if some kind of call was always refused. */
#define MOST_TIMES	4

struct caller {
	struct know *k;
	struct arena *arena;
	struct rnd rnd;
};

static void write_to(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY);

	if (fd >= 0) {
		if (write(fd, what, strlen(what)) < 0)
			perror(path);
		close(fd);
	}
}

static void *caller_thread(void *arg)
{
	struct caller *c = arg;

	write_to("/proc/thread-self/make-it-fail", "1");
	for (unsigned int n = 0;; n++) {
		if (n % 64 == 0)
			know_refresh(c->k);
		random_call(c->k, c->arena, &c->rnd);
		/* The other thread is in the midst of a call. */
		if (++c->k->counts->total >= c->k->last_call)
			raise(SIGKILL);
	}
	return NULL;
}

static void *scribbler_thread(void *arg)
{
	struct caller *c = arg;

	for (;;) {
		arena_scribble(c->arena, &c->rnd);
		usleep(20);
	}
	return NULL;
}

/* ---- answers ---- */

static void answer_fetch(struct know *k, const struct dm_dedup_upcall *up, struct rnd *r)
{
	static uint8_t data[1 << 20];
	struct dm_dedup_publish p = { .cookie = up->cookie, .volume = up->info.volume,
				      .block = up->block, .data = (uintptr_t)data };
	struct dm_dedup_batch b = { .size = sizeof(b), .entry_size = sizeof(p), .count = 1,
				    .agent_epoch = k->epoch, .entries = (uintptr_t)&p };
	size_t bytes = 1UL << k->block_shift;
	int tries;

	memset(data, rnd64(r), bytes);
	if (up->info.volume == k->safe &&
	    pread(k->safe_fd, data, bytes, up->block * bytes) != (ssize_t)bytes)
		abort();
	else if (up->info.volume != k->safe && rnd_one_in(r, 3))
		return;
	memcpy(p.root, up->info.root, sizeof(p.root));
	memcpy(p.fp, data, sizeof(p.fp));
	/* (A full cache is not the safe volume's fault; its guard is told by the deadline.) */
	for (tries = 0; tries < 4; tries++) {
		b.agent_epoch = k->epoch;
		if (!ioctl(k->fd, DM_DEDUP_PUBLISH, &b) && p.result != -ENOSPC)
			break;
	}
}

static void answer_open(struct know *k, const struct dm_dedup_upcall *up, struct rnd *r)
{
	struct dm_dedup_reply rep = { .size = sizeof(rep), .agent_epoch = k->epoch,
				      .cookie = up->cookie };

	rep.info.size = 8 << 20;
	snprintf((char *)rep.info.image, sizeof(rep.info.image), "%.14s", up->info.name);
	if (up->type == DM_DEDUP_UP_OPEN) {
		memcpy(rep.info.root, up->info.root, sizeof(rep.info.root));
		rep.info.lease_epoch = up->info.lease_epoch ? up->info.lease_epoch : 1;
		rep.info.committed_cut = up->info.committed_cut;
		if (rnd_one_in(r, 4))
			rep.info.root[0] ^= rnd64(r);
		if (rnd_one_in(r, 4))
			rep.info.lease_epoch += rnd_below(r, 3);
		if (rnd_one_in(r, 4))
			rep.info.committed_cut += rnd_below(r, 3) - 1;
	}
	if (rnd_one_in(r, 8))
		rep.error = 1 + rnd_below(r, 200);
	/* Some are left to the random calls. */
	if (rnd_one_in(r, 3))
		return;
	ioctl(k->fd, DM_DEDUP_REPLY, &rep);
}

static void answer_some(struct know *k, struct rnd *r)
{
	struct dm_dedup_upcall up[8];
	ssize_t n = read(k->fd, up, sizeof(up));

	for (ssize_t i = 0; i < n / (ssize_t)sizeof(up[0]); i++) {
		know_upcall(k, &up[i]);
		if (up[i].type == DM_DEDUP_UP_FETCH)
			answer_fetch(k, &up[i], r);
		else if (up[i].type == DM_DEDUP_UP_LOOKUP || up[i].type == DM_DEDUP_UP_OPEN)
			answer_open(k, &up[i], r);
	}
}

/* Until it is killed. */
static int agent(const char *path, const char *safe_file, struct counts *counts, struct rnd *r)
{
	static struct know k = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct caller callers[2];
	pthread_t t;

	k.counts = counts;
	k.last_call = counts->total + 1 + rnd_below(r, MOST_CALLS);
	for (int i = 0; (k.fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK)) < 0; i++) {
		if (errno != EBUSY || i == 1000)
			return 3;
		usleep(10000);
	}
	k.safe_fd = open(safe_file, O_RDONLY);
	if (k.safe_fd < 0 || know_hello(&k))
		return 3;
	know_refresh(&k);
	if (!k.safe)
		return 4;
	for (int i = 0; i < 2; i++) {
		callers[i] = (struct caller){ &k, arena_new(), rnd_seed(rnd64(r)) };
		if (pthread_create(&t, NULL, caller_thread, &callers[i]) ||
		    pthread_create(&t, NULL, scribbler_thread, &callers[i]))
			return 5;
	}
	for (;;) {
		struct pollfd p = { .fd = k.fd, .events = POLLIN };

		poll(&p, 1, 100);
		answer_some(&k, r);
	}
}

/* A fuzzer all of whose calls are refused finds little: these must have been done. */
static bool all_done(const struct counts *counts)
{
	static const uint8_t must[] = { 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x0c };
	bool all = true;

	for (size_t i = 0; i < sizeof(must); i++)
		all &= counts->done[must[i]] != 0;
	return all;
}

static int print_counts(const struct counts *counts)
{
	for (int i = 0; i <= 0x0c; i++) {
		printf("call %#x: %llu done, %llu refused\n", i,
		       (unsigned long long)counts->done[i], (unsigned long long)counts->refused[i]);
	}
	return !all_done(counts);
}

static int agents(int argc, char **argv)
{
	struct counts *counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t seed, calls;
	char path[128];
	int lives = 0;

	if (argc != 4 || counts == MAP_FAILED)
		return 2;
	snprintf(path, sizeof(path), "/dev/dm-dedup/%s", argv[0]);
	calls = strtoull(argv[2], NULL, 0);
	seed = strtoull(argv[3], NULL, 0);
	write_to("/sys/kernel/debug/failslab/task-filter", "Y");
	write_to("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	write_to("/sys/kernel/debug/failslab/verbose", "0");
	write_to("/sys/kernel/debug/failslab/interval", "1");
	write_to("/sys/kernel/debug/failslab/times", "-1");
	write_to("/sys/kernel/debug/failslab/probability", "2");
	for (; counts->total < calls || (!all_done(counts) && counts->total < MOST_TIMES * calls);
	     lives++) {
		struct rnd r = rnd_seed(seed + lives);
		pid_t pid = fork();
		int status;

		if (!pid)
			_exit(agent(path, argv[1], counts, &r));
		if (waitpid(pid, &status, 0) != pid || WIFEXITED(status)) {
			fprintf(stderr, "channel_fuzz: agent %d ended by itself, status %d\n",
				lives, WEXITSTATUS(status));
			return 1;
		}
	}
	write_to("/sys/kernel/debug/failslab/probability", "0");
	printf("%d agents, %llu calls\n", lives, (unsigned long long)counts->total);
	return print_counts(counts);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "guard"))
		return guard(argc - 2, argv + 2);
	if (argc > 1 && !strcmp(argv[1], "agents"))
		return agents(argc - 2, argv + 2);
	fprintf(stderr, "usage: channel_fuzz agents|guard ...\n");
	return 2;
}
