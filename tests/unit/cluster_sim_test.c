// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Histories of a storage cluster in simulated time (tests/sim/cluster), each in a process of its own, as
 * many at once as there are processors. Without arguments: those from seed 1 on, as many as there are in
 * 12 s. USAGE has the rest.
 */
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <malloc.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "../sim/cluster/history.h"

#define LIMIT_S	  10 /* of a processor, for one history */
#define DEFAULT_S 12

static const char USAGE[] =
	"usage: cluster_sim_test [OPTION...]\n"
	"Runs histories of a simulated storage cluster until one fails, whose seed is printed then.\n"
	"  --seed=N       the first seed (1); alone: only this one\n"
	"  --histories=N  so many\n"
	"  --seconds=N    as many as there are in so long (12)\n"
	"  --hard         disks are put back from copies, too, and JOINs of dead processes come late\n"
	"  --jobs=N       so many at once, at most 64 (as many as there are processors)\n"
	"  --trace        says all that happens\n"
	"Long: cluster_sim_test --hard --histories=3000\n"
	"A failure again: cluster_sim_test --hard --seed=N --trace\n";

static struct {
	uint64_t seed, histories, jobs;
	double seconds;
	bool hard, trace;
} options = { .seed = 1, .histories = UINT64_MAX, .seconds = DEFAULT_S };

#define MAX_JOBS 64

struct outcome {
	bool done, good;
	struct history_result r;
	char what[512];
};

/* A history in its process. @out is shared with it. */
struct job {
	pid_t pid;
	char dir[64];
	struct outcome *out;
};

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void make_folder(char dir[64])
{
	/* In memory where there is some to be had: a history syncs thousands of times. */
	const char *where = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";

	snprintf(dir, 64, "%s/vmdedup-sim.XXXXXX", where);
	assert_non_null(mkdtemp(dir));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
	return remove(path);
}

static void remove_folder(const char *dir)
{
	assert_int_equal(nftw(dir, remove_one, 32, FTW_DEPTH | FTW_PHYS), 0);
}

static int begin(void **state)
{
	char dir[64], what[512];
	bool good;

	make_folder(dir);
	good = histories_begin(dir, what, sizeof(what));
	remove_folder(dir);
	if (!good)
		fail_msg("%s", what);
	return 0;
}

static void job_start(struct job *j, uint64_t seed)
{
	struct rlimit cpu = { LIMIT_S, LIMIT_S + 1 }, fds = { 65536, 65536 };
	struct history_options o = { .seed = seed, .trace = options.trace, .hard = options.hard };
	struct outcome *out = j->out;

	make_folder(j->dir);
	o.dir = j->dir;
	memset(out, 0, sizeof(*out));
	fflush(stdout);
	j->pid = fork();
	assert_true(j->pid >= 0);
	if (!j->pid) {
		for (int i = 1; i < 32; i++)
			signal(i, SIG_DFL); /* not cmocka's */
		alarm(10 * LIMIT_S);
		/* Large tables stay untouched, and what is freed is not given back. */
		mallopt(M_MMAP_THRESHOLD, 512 << 10);
		mallopt(M_TRIM_THRESHOLD, 1 << 30);
		setrlimit(RLIMIT_CPU, &cpu);
		getrlimit(RLIMIT_NOFILE, &fds);
		fds.rlim_cur = fds.rlim_max;
		setrlimit(RLIMIT_NOFILE, &fds);
		out->good = history_run(&o, &out->r, out->what, sizeof(out->what));
		out->done = true;
		fflush(stdout);
		_exit(0);
	}
}

static void job_end(struct job *j)
{
	int status;

	assert_int_equal(waitpid(j->pid, &status, 0), j->pid);
	if (!j->out->done)
		snprintf(j->out->what, sizeof(j->out->what), "it ended with status %#x", status);
	remove_folder(j->dir);
	j->pid = 0;
}

static void run(uint64_t seed, struct outcome *out)
{
	struct job j = { .out = out };

	job_start(&j, seed);
	job_end(&j);
}

static void jobs_kill(struct job *jobs)
{
	for (struct job *j = jobs; j < jobs + MAX_JOBS; j++) {
		if (!j->pid)
			continue;
		kill(j->pid, SIGKILL);
		job_end(j);
	}
}

static struct outcome *outcome_new(void)
{
	struct outcome *out = mmap(NULL, sizeof(*out), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(out != MAP_FAILED);
	return out;
}

/* Of a processor, by the histories that have ended. */
static double used_s(void)
{
	struct rusage u;

	getrusage(RUSAGE_CHILDREN, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void add(struct history_result *sum, const struct history_result *r)
{
	sum->commits += r->commits;
	sum->removed += r->removed;
	sum->crashes += r->crashes;
	sum->damages += r->damages;
	sum->anew += r->anew;
	sum->collections += r->collections;
	sum->checks += r->checks;
	sum->sim_ns += r->sim_ns - 1000000000000ULL;
	sum->digest = (sum->digest ^ r->digest) * 0x100000001b3ULL;
}

static void test_histories(void **state)
{
	double from = now_s(), used = used_s();
	struct job jobs[MAX_JOBS] = { 0 };
	struct history_result sum = { 0 };
	uint64_t n = 0, begun = 0;

	for (uint64_t i = 0; i < options.jobs; i++)
		jobs[i].out = outcome_new();
	for (;;) {
		struct job *j = &jobs[n % options.jobs];

		for (; begun < options.histories && begun < n + options.jobs &&
		       (!begun || now_s() - from < options.seconds); begun++)
			job_start(&jobs[begun % options.jobs], options.seed + begun);
		if (n == begun)
			break;
		job_end(j);
		n++;
		if (!j->out->good) {
			jobs_kill(jobs);
			fail_msg("seed %llu (--seed=N%s, --trace tells it): %s",
				 (unsigned long long)(options.seed + n - 1), options.hard ? " --hard" : "",
				 j->out->what);
		}
		add(&sum, &j->out->r);
	}
	used = used_s() - used;
	print_message("%llu histories (seeds %llu..) of %.0f s each, %.1f a second, %.1f a second of a "
		      "processor: %u commits, %u removed, %u collections, %u crashes, %u other disks, %u taken "
		      "for former ones, %u states checked; digest %016llx\n",
		      (unsigned long long)n, (unsigned long long)options.seed,
		      (double)sum.sim_ns / 1e9 / (double)n, (double)n / (now_s() - from), (double)n / used,
		      sum.commits, sum.removed, sum.collections, sum.crashes, sum.damages, sum.anew, sum.checks,
		      (unsigned long long)sum.digest);
	/* They are no good if they do nothing. (One alone may be a quiet one.) */
	assert_true(n == 1 || (sum.commits > 0 && sum.crashes > 0 && sum.checks > 0));
	for (uint64_t i = 0; i < options.jobs; i++)
		munmap(jobs[i].out, sizeof(*jobs[i].out));
}

static void test_same_seed_same_story(void **state)
{
	struct outcome *a = outcome_new(), *b = outcome_new();

	run(7, a);
	run(7, b);
	assert_true(a->good && b->good);
	assert_true(a->r.digest == b->r.digest);
	run(8, b);
	assert_true(a->r.digest != b->r.digest);
	munmap(a, sizeof(*a));
	munmap(b, sizeof(*b));
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "seed", required_argument, NULL, 's' },   { "histories", required_argument, NULL, 'n' },
		{ "seconds", required_argument, NULL, 't' }, { "hard", no_argument, NULL, 'h' },
		{ "jobs", required_argument, NULL, 'j' },    { "trace", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	bool seed = false, many = false;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			options.seed = strtoull(optarg, NULL, 0);
			seed = true;
			break;
		case 'n':
			options.histories = strtoull(optarg, NULL, 0);
			options.seconds = many ? options.seconds : HUGE_VAL;
			many = true;
			break;
		case 't':
			options.seconds = strtod(optarg, NULL);
			many = true;
			break;
		case 'j':
			options.jobs = strtoull(optarg, NULL, 0);
			break;
		case 'h':
			options.hard = true;
			break;
		case 'v':
			options.trace = true;
			break;
		default:
			fputs(USAGE, stderr);
			exit(2);
		}
	}
	if (!options.jobs)
		options.jobs = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
	options.jobs = options.jobs < MAX_JOBS ? options.jobs : MAX_JOBS;
	if (options.trace)
		options.jobs = 1;
	if (seed && !many) {
		options.histories = 1;
		cmocka_set_test_filter("test_histories");
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_histories),
		cmocka_unit_test(test_same_seed_same_story),
	};

	parse(argc, argv);
	return cmocka_run_group_tests(tests, begin, NULL);
}
