// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "threads.h"

#define MAX_THREADS 512
#define MAX_EVENTS  4096
#define STACK	    (1 << 20)
#define WORD	    64 /* bits of a set of threads */
#define WORDS	    (MAX_THREADS / WORD)

struct thread {
	void *context;	    /* its stack pointer, while it does not run */
	void *stack, *fake; /* the sanitizer's, while it does not run */
	bool used, done, woken;
	unsigned int node;
	uint64_t life; /* of the node */
	unsigned int held; /* locks */
	bool (*ready)(void *arg);
	void *arg;
	uint64_t until_ns;
	const void *cond;
	void *(*fn)(void *);
	void *fn_arg;
};

/* Bits are slots of threads. */
struct node {
	uint64_t life;
	uint64_t frozen_ns;
	uint64_t members[WORDS];
	/* Whether a thread of a node can run changes when one of that node has run, when the network has
	 * brought something, or at this time. */
	uint64_t due_ns;
	bool changed;
};

static struct {
	uint64_t now, seed;
	struct thread threads[MAX_THREADS];
	unsigned int nr; /* slots in use so far */
	struct thread *self; /* NULL: the scheduler runs */
	void *scheduler, *fake;
	struct node nodes[MAX_NODES];
	uint64_t runnable[WORDS];
	bool logs;
	uint64_t events[MAX_EVENTS];
	unsigned int nr_events;
} sim;

static void die(const char *what)
{
	fprintf(stderr, "simulation: %s\n", what);
	abort();
}

void threads_init(uint64_t seed, bool logs)
{
	sim.logs = logs;
	sim.seed = (seed + 1) * 0x9e3779b97f4a7c15ULL;
	sim.now = 1000000000000ULL;
}

uint64_t threads_now(void)
{
	return sim.now;
}

uint64_t sim_pick(uint64_t n)
{
	sim.seed ^= sim.seed << 13;
	sim.seed ^= sim.seed >> 7;
	sim.seed ^= sim.seed << 17;
	return n ? (sim.seed * 0x2545f4914f6cdd1dULL >> 11) % n : 0;
}

unsigned int thread_node(void)
{
	return sim.self ? sim.self->node : 0;
}

uint64_t node_life(unsigned int node)
{
	return sim.nodes[node].life;
}

void node_changed(unsigned int node)
{
	sim.nodes[node].changed = true;
}

void node_kill(unsigned int node)
{
	sim.nodes[node].life++;
	sim.nodes[node].frozen_ns = 0;
	node_changed(node);
	net_sim_killed(node);
}

void node_freeze(unsigned int node, uint64_t ns)
{
	sim.nodes[node].frozen_ns = sim.now + ns;
	node_changed(node);
}

/* ---- switching ---- */

/*
 * swapcontext() makes a system call each time, and is slow under a sanitizer: what has to be kept is what a
 * function has to keep for its caller.
 */
#ifndef __x86_64__
#error switch_stack() is to be written for this processor
#endif
__attribute__((naked, noinline, no_sanitize("address"))) static void switch_stack(void **save, void *to)
{
	__asm__("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
		"mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
		"pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

static void *new_stack(void *stack, void (*begin)(void))
{
	void **top = (void **)((char *)stack + STACK);

	*--top = NULL; /* nobody called it */
	*--top = NULL;
	*--top = NULL;
	*--top = (void *)begin;
	return top - 6; /* registers */
}

/* The sanitizer is told of each switch, and whose stack it is then. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

static const void *main_stack;
static size_t main_size;

static void leave(void **fake, const void *stack, size_t size)
{
	__sanitizer_start_switch_fiber(fake, stack, size);
}

static void enter(void *fake, const void **from, size_t *size)
{
	__sanitizer_finish_switch_fiber(fake, from, size);
}

/* What its last owner had there when it was killed. */
static void clean_stack(const struct thread *t)
{
	__asan_unpoison_memory_region(t->stack, STACK);
}
#else
static const void *main_stack;
static size_t main_size;

static void leave(void **fake, const void *stack, size_t size)
{
}

static void enter(void *fake, const void **from, size_t *size)
{
}

static void clean_stack(const struct thread *t)
{
}
#endif

static void to_scheduler(void)
{
	struct thread *t = sim.self;

	leave(&t->fake, main_stack, main_size);
	switch_stack(&t->context, sim.scheduler);
	enter(t->fake, NULL, NULL);
}

static void thread_main(void)
{
	struct thread *t = sim.self;

	enter(NULL, &main_stack, &main_size);
	t->fn(t->fn_arg);
	t->done = true;
	for (;;)
		to_scheduler();
}

/* ---- threads ---- */

static void set_add(uint64_t *set, const struct thread *t)
{
	size_t i = (size_t)(t - sim.threads);

	set[i / WORD] |= 1ULL << i % WORD;
}

static void set_remove(uint64_t *set, const struct thread *t)
{
	size_t i = (size_t)(t - sim.threads);

	set[i / WORD] &= ~(1ULL << i % WORD);
}

/* The first one of the set from slot @*i on, which is the next slot then; or NULL. */
static struct thread *set_next(const uint64_t *set, size_t *i)
{
	while (*i < sim.nr) {
		uint64_t rest = set[*i / WORD] >> *i % WORD;

		if (!rest) {
			*i = (*i / WORD + 1) * WORD;
			continue;
		}
		*i += (size_t)__builtin_ctzll(rest) + 1;
		return &sim.threads[*i - 1];
	}
	return NULL;
}

static void thread_free(struct thread *t)
{
	t->used = false;
	set_remove(sim.nodes[t->node].members, t);
	set_remove(sim.runnable, t);
}

static struct thread *thread_new(void)
{
	for (unsigned int i = 0; i < sim.nr; i++)
		if (!sim.threads[i].used)
			return &sim.threads[i];
	if (sim.nr == MAX_THREADS)
		die("too many threads");
	return &sim.threads[sim.nr++];
}

static struct thread *spawn(unsigned int node, void *(*fn)(void *), void *arg)
{
	struct thread *t = thread_new();

	if (!t->stack) {
		t->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (t->stack == MAP_FAILED)
			die("no memory for a stack");
	}
	clean_stack(t);
	t->context = new_stack(t->stack, thread_main);
	t->used = true;
	set_add(sim.nodes[node].members, t);
	node_changed(node);
	t->done = t->woken = false;
	t->node = node;
	t->life = sim.nodes[node].life;
	t->held = 0;
	t->ready = NULL;
	t->until_ns = 0;
	t->cond = NULL;
	t->fn = fn;
	t->fn_arg = arg;
	return t;
}

void thread_start(unsigned int node, void *(*fn)(void *), void *arg)
{
	spawn(node, fn, arg);
}

bool thread_wait(bool (*ready)(void *arg), void *arg, uint64_t until_ns)
{
	struct thread *t = sim.self;

	t->ready = ready;
	t->arg = arg;
	t->until_ns = until_ns;
	to_scheduler();
	return ready && ready(arg);
}

void thread_sleep(uint64_t ns)
{
	thread_wait(NULL, NULL, sim.now + ns);
}

static bool is_there(const struct thread *t)
{
	return t->used && !t->done && t->life == sim.nodes[t->node].life;
}

static void run_one(struct thread *t)
{
	sim.self = t;
	leave(&sim.fake, t->stack, STACK);
	switch_stack(&sim.scheduler, t->context);
	enter(sim.fake, NULL, NULL);
	sim.self = NULL;
}

/* Who of a node can run now, and when that may be others. */
static void look_at_node(struct node *node)
{
	bool frozen = node->frozen_ns > sim.now;
	struct thread *t;
	size_t i = 0;

	node->changed = false;
	node->due_ns = frozen ? node->frozen_ns : UINT64_MAX;
	while ((t = set_next(node->members, &i))) {
		set_remove(sim.runnable, t);
		/* The stack of one that was killed may be used again. */
		if (t->life != node->life)
			thread_free(t);
		else if (t->done || frozen)
			continue;
		else if (t->until_ns <= sim.now || (t->ready && t->ready(t->arg)))
			set_add(sim.runnable, t);
		else if (t->until_ns < node->due_ns)
			node->due_ns = t->until_ns;
	}
}

/* NULL: nobody can. */
static struct thread *pick_runnable(void)
{
	struct thread *t;
	size_t nr = 0, i = 0;

	for (struct node *node = sim.nodes; node < sim.nodes + MAX_NODES; node++)
		if (node->changed || node->due_ns <= sim.now)
			look_at_node(node);
	for (size_t w = 0; w < WORDS; w++)
		nr += (size_t)__builtin_popcountll(sim.runnable[w]);
	if (!nr)
		return NULL;
	nr = sim_pick(nr);
	do {
		t = set_next(sim.runnable, &i);
	} while (nr--);
	return t;
}

/* False: nothing will ever happen. */
static bool advance(void)
{
	uint64_t next = net_sim_next();

	for (unsigned int i = 0; i < MAX_NODES; i++)
		if (sim.nodes[i].due_ns < next)
			next = sim.nodes[i].due_ns;
	if (next == UINT64_MAX)
		return false;
	if (next > sim.now)
		sim.now = next;
	return true;
}

bool threads_run(bool (*done)(void *arg), void (*step)(void *arg, unsigned int node), void *arg)
{
	struct thread *t;

	while (!done(arg)) {
		net_sim_run();
		t = pick_runnable();
		if (!t) {
			if (!advance())
				return false;
			continue;
		}
		run_one(t);
		node_changed(t->node);
		sim.now += 500 + sim_pick(10000);
		step(arg, t->node);
	}
	return true;
}

/* ---- what the daemons call ---- */

int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_join(pthread_t id, void **result);
int __wrap_pthread_mutex_lock(pthread_mutex_t *m);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *m);
int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *l);
int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *l);
int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *l);
int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
int __wrap_clock_cond_wait(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns);
int __wrap_pthread_cond_signal(pthread_cond_t *c);
int __wrap_pthread_cond_broadcast(pthread_cond_t *c);
uint64_t __wrap_clock_mono_ns(void);
uint64_t __wrap_clock_wall_s(void);
time_t __wrap_time(time_t *t);
int __wrap_usleep(useconds_t us);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned int flags);
int __wrap_eventfd(unsigned int count, int flags);
ssize_t __wrap_read(int fd, void *buf, size_t len);
ssize_t __wrap_write(int fd, const void *buf, size_t len);
int __wrap_close(int fd);
int __wrap_poll(struct pollfd *fds, nfds_t nr, int ms);
ssize_t __real_read(int fd, void *buf, size_t len);
ssize_t __real_write(int fd, const void *buf, size_t len);
int __real_close(int fd);

int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	*id = (pthread_t)(spawn(thread_node(), fn, arg) - sim.threads);
	return 0;
}

static bool has_ended(void *arg)
{
	return ((struct thread *)arg)->done;
}

int __wrap_pthread_join(pthread_t id, void **result)
{
	struct thread *t = &sim.threads[id];

	thread_wait(has_ended, t, UINT64_MAX);
	thread_free(t);
	return 0;
}

/* A lock is its own first word: 0 free. Nobody is put aside while he holds one. */
static int *word(void *lock)
{
	return lock;
}

static bool is_free(void *lock)
{
	return !*word(lock);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
	if (!sim.self)
		return 0;
	if (*word(m))
		thread_wait(is_free, m, UINT64_MAX);
	*word(m) = 1;
	sim.self->held++;
	return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
	if (!sim.self)
		return 0;
	*word(m) = 0;
	if (!--sim.self->held && sim_one_in(8))
		thread_wait(NULL, NULL, 0);
	return 0;
}

/* Only an index that grows takes it for writing: none here does. */
int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *l)
{
	if (sim.self)
		sim.self->held++;
	return 0;
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *l)
{
	die("an index grows");
	return 0;
}

int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *l)
{
	if (sim.self)
		sim.self->held--;
	return 0;
}

static bool is_woken(void *arg)
{
	return ((struct thread *)arg)->woken;
}

static bool cond_wait(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
	struct thread *t = sim.self;
	bool woken;

	t->cond = c;
	t->woken = sim_one_in(64); /* for nothing, as it is allowed */
	*word(m) = 0;
	t->held--;
	woken = thread_wait(is_woken, t, until_ns);
	t->cond = NULL;
	__wrap_pthread_mutex_lock(m);
	return woken;
}

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
	cond_wait(c, m, UINT64_MAX);
	return 0;
}

int __wrap_clock_cond_wait(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
	return cond_wait(c, m, until_ns) ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_signal(pthread_cond_t *c)
{
	struct thread *waiting[MAX_THREADS], *t;
	size_t nr = 0, i = 0;

	while ((t = set_next(sim.nodes[thread_node()].members, &i)))
		if (is_there(t) && t->cond == c && !t->woken)
			waiting[nr++] = t;
	if (nr)
		waiting[sim_pick(nr)]->woken = true;
	return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
	struct thread *t;
	size_t i = 0;

	while ((t = set_next(sim.nodes[thread_node()].members, &i)))
		if (is_there(t) && t->cond == c)
			t->woken = true;
	return 0;
}

uint64_t __wrap_clock_mono_ns(void)
{
	return sim.now;
}

uint64_t __wrap_clock_wall_s(void)
{
	return 1700000000 + sim.now / 1000000000;
}

time_t __wrap_time(time_t *t)
{
	if (t)
		*t = (time_t)__wrap_clock_wall_s();
	return (time_t)__wrap_clock_wall_s();
}

int __wrap_usleep(useconds_t us)
{
	thread_sleep(us * 1000ULL);
	return 0;
}

int __wrap_nanosleep(const struct timespec *ts, struct timespec *left)
{
	thread_sleep((uint64_t)ts->tv_sec * 1000000000 + (uint64_t)ts->tv_nsec);
	return 0;
}

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned int flags)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)buf)[i] = (uint8_t)sim_pick(256);
	return (ssize_t)len;
}

/* ---- descriptors that are no files ---- */

int __wrap_eventfd(unsigned int count, int flags)
{
	if (sim.nr_events == MAX_EVENTS)
		die("too many eventfds");
	sim.events[sim.nr_events] = count;
	return SIM_FD + (int)sim.nr_events++;
}

ssize_t __wrap_read(int fd, void *buf, size_t len)
{
	uint64_t *e = fd >= SIM_FD ? &sim.events[fd - SIM_FD] : NULL;

	if (!e)
		return __real_read(fd, buf, len);
	if (!*e) {
		errno = EAGAIN;
		return -1;
	}
	memcpy(buf, e, sizeof(*e));
	*e = 0;
	return sizeof(*e);
}

ssize_t __wrap_write(int fd, const void *buf, size_t len)
{
	if (fd == STDERR_FILENO && !sim.logs)
		return (ssize_t)len; /* the daemons' logs */
	if (fd < SIM_FD)
		return __real_write(fd, buf, len);
	sim.events[fd - SIM_FD]++;
	return sizeof(uint64_t);
}

int __wrap_close(int fd)
{
	return fd >= SIM_FD ? 0 : __real_close(fd);
}

bool sim_fd_readable(int fd)
{
	return fd >= SIM_NET_FD ? net_sim_readable(fd) : fd >= SIM_FD && sim.events[fd - SIM_FD];
}

struct poll_set {
	struct pollfd *fds;
	nfds_t nr;
};

static bool any_readable(void *arg)
{
	const struct poll_set *p = arg;

	for (nfds_t i = 0; i < p->nr; i++)
		if (p->fds[i].fd >= 0 && sim_fd_readable(p->fds[i].fd))
			return true;
	return false;
}

int __wrap_poll(struct pollfd *fds, nfds_t nr, int ms)
{
	struct poll_set p = { fds, nr };
	int n = 0;

	thread_wait(any_readable, &p, ms < 0 ? UINT64_MAX : sim.now + (uint64_t)ms * 1000000);
	for (nfds_t i = 0; i < nr; i++) {
		fds[i].revents = fds[i].fd >= 0 && sim_fd_readable(fds[i].fd) ? POLLIN : 0;
		n += fds[i].revents != 0;
	}
	return n;
}

