// SPDX-License-Identifier: GPL-2.0-or-later
/* Hosts that boot one image at once, in simulated time: a small form of tests/bench/swarm_sim.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "../sim/engine.h"
#include "../sim/swarm.h"

static struct swarm_params storm(void)
{
	const char *seed = getenv("VMDEDUP_SEED");
	struct swarm_params p;

	swarm_defaults(&p);
	p.seed = seed ? strtoull(seed, NULL, 0) : 1;
	p.hosts = 100;
	p.rack_hosts = 20;
	p.blocks = 1024;
	p.touched = 64;
	p.think_ns = SIM_S / 2 / p.touched;
	print_message("seed %llu (VMDEDUP_SEED)\n", (unsigned long long)p.seed);
	return p;
}

static void run(const struct swarm_params *p, struct swarm_result *r)
{
	assert_int_equal(swarm_run(p, r), 0);
	assert_int_equal(r->complete + r->dead, p->hosts);
	print_message("median %.3f s, worst %.3f s, data servers sent %.2f of the image, %.2f "
		      "of all went between racks\n",
		      (double)r->times_ns[r->complete / 2] / 1e9,
		      (double)r->times_ns[r->complete - 1] / 1e9,
		      (double)r->data_bytes / (double)r->unique_bytes,
		      (double)r->far_bytes / (double)(r->peer_bytes + r->data_bytes));
}

static void test_servers_do_not_feel_a_storm(void **state)
{
	struct swarm_params p = storm();
	struct swarm_result r;

	run(&p, &r);
	assert_true(2 * r.data_bytes <= 3 * r.unique_bytes);
	/* A block comes into a rack of 20 a few times. */
	assert_true(3 * r.far_bytes <= r.peer_bytes + r.data_bytes);
	/* Nobody waits for anybody who waits for him: that took until sources.c gives up, 15 s. */
	assert_true(r.times_ns[r.complete - 1] < SIM_S);
	free(r.times_ns);
}

/* The first to come has all, as its filter says, and more to send than it may: it is busy, and names
 * others. */
static void test_busy_hosts_name_no_circle(void **state)
{
	struct swarm_params p = storm();
	struct swarm_result r;

	p.hosts = 40;
	p.touched = 192;
	p.think_ns = 0;
	p.host_rate = 125000000;
	p.early_ns = 5 * SIM_S;
	run(&p, &r);
	print_message("%llu refusals of busy hosts\n", (unsigned long long)r.busy);
	assert_true(r.busy > 0);
	assert_true(r.times_ns[r.complete - 1] < 8 * SIM_S);
	free(r.times_ns);
}

/* It takes ten times as long, and nobody else does. */
static void test_a_slow_link_is_its_own(void **state)
{
	struct swarm_params p = storm();
	struct swarm_result r;
	uint64_t worst;

	p.hosts = 40;
	p.blocks = p.touched = 512;
	p.think_ns = 0;
	p.depth = 32;
	p.trace = false;
	run(&p, &r);
	worst = r.times_ns[r.complete - 1];
	free(r.times_ns);
	p.slow_hosts = 1;
	run(&p, &r);
	print_message("the worst of the others %.3f s, without it %.3f s\n", (double)r.others_ns / 1e9,
		      (double)worst / 1e9);
	assert_true(r.others_ns <= worst * 5 / 4);
	free(r.times_ns);
}

static void test_hosts_that_die(void **state)
{
	struct swarm_params p = storm();
	struct swarm_result r;

	p.kill_percent = 20;
	run(&p, &r);
	assert_in_range(r.dead, 5, 40);
	assert_true(r.data_bytes <= 3 * r.unique_bytes);
	assert_true(r.times_ns[r.complete - 1] < 10 * SIM_S);
	free(r.times_ns);
}

static void test_same_seed_same_story(void **state)
{
	struct swarm_params p = storm();
	struct swarm_result a, b;

	p.hosts = 30;
	run(&p, &a);
	run(&p, &b);
	assert_int_equal(a.events, b.events);
	assert_int_equal(a.end_ns, b.end_ns);
	assert_int_equal(a.data_bytes, b.data_bytes);
	p.seed++;
	free(b.times_ns);
	run(&p, &b);
	assert_int_not_equal(a.end_ns, b.end_ns);
	free(a.times_ns);
	free(b.times_ns);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_servers_do_not_feel_a_storm),
		cmocka_unit_test(test_busy_hosts_name_no_circle),
		cmocka_unit_test(test_a_slow_link_is_its_own),
		cmocka_unit_test(test_hosts_that_die),
		cmocka_unit_test(test_same_seed_same_story),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
