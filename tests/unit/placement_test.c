// SPDX-License-Identifier: GPL-2.0-or-later
/* Who gets which shards: a fair share by capacity, failure domains, and no more moves than that takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/fingerprint.h"
#include "meta/placement.h"

static void add_server(struct placement *p, uint64_t capacity)
{
	struct placement_server *s = &p->servers[p->nr_servers++];

	*s = (struct placement_server){ .id = (uint32_t)p->nr_servers, .capacity = capacity,
					.room = UINT64_MAX, .takes = true };
	snprintf(s->host, sizeof(s->host), "host%zu", p->nr_servers);
}

/* Finishes what is in motion; returns how many replicas were copied. */
static unsigned int finish(struct placement *p)
{
	unsigned int copied = 0;

	for (unsigned int s = 0; s < NR_SHARDS; s++) {
		for (unsigned int k = 0; k < PROTO_MAX_PLACES; k++) {
			struct placement_row *row = &p->shards[s][k];

			copied += row->server && row->state == REPLICA_STALE;
			if (row->state == REPLICA_LEAVING)
				*row = (struct placement_row){ 0 };
			row->state = REPLICA_CURRENT;
		}
	}
	memset(p->changed, 0, sizeof(p->changed));
	return copied;
}

static unsigned int settle(struct placement *p)
{
	unsigned int copied = 0, rounds = 0;

	do {
		p->moves = 64;
		p->unplaced = 0;
		if (!placement_fill(p))
			return copied;
		copied += finish(p);
	} while (++rounds < 100);
	fail_msg("the placement does not settle");
	return 0;
}

static unsigned int places_of(const struct placement *p, uint32_t id)
{
	unsigned int n = 0;

	for (unsigned int s = 0; s < NR_SHARDS; s++)
		for (unsigned int k = 0; k < PROTO_MAX_PLACES; k++)
			n += p->shards[s][k].server == id;
	return n;
}

/* A fifth server beside four: what moves is its fair share, and not a tenth more. */
static void fifth_server_moves_its_share(void **state)
{
	struct placement *p = calloc(1, sizeof(*p));
	unsigned int copied, ideal = NR_SHARDS * 2 / 5;

	p->replicas = 2;
	p->shard_bytes = 1;
	for (int i = 0; i < 4; i++)
		add_server(p, 1ULL << 40);
	settle(p);
	for (uint32_t id = 1; id <= 4; id++)
		assert_in_range(places_of(p, id), 510, 514);
	add_server(p, 1ULL << 40);
	copied = settle(p);
	print_message("4 to 5 servers: %u of %u replicas copied, ideally %u\n", copied,
		      2 * NR_SHARDS, ideal);
	assert_in_range(copied, ideal * 95 / 100, ideal * 110 / 100);
	for (uint32_t id = 1; id <= 5; id++)
		assert_in_range(places_of(p, id), 401, 418);
	free(p);
}

/* Disks that are as large, but for what else is on them: places stay where they are, with blocks or without. */
static void small_changes_move_nothing(void **state)
{
	struct placement *p = calloc(1, sizeof(*p));

	p->replicas = 3;
	p->shard_bytes = 1;
	for (int i = 0; i < 5; i++)
		add_server(p, 1ULL << 40);
	for (unsigned int s = 0; s < NR_SHARDS; s++)
		p->empty[s] = s % 2;
	settle(p);
	for (unsigned int minute = 0; minute < 60; minute++) {
		for (unsigned int i = 0; i < 5; i++)
			p->servers[i].capacity = (1ULL << 40) - ((minute * 7 + i * 3) % 16 << 29);
		p->moves = 64;
		assert_int_equal(placement_fill(p), 0);
	}
	/* A disk that has grown by a tenth is worth some. */
	p->servers[2].capacity += p->servers[2].capacity / 10;
	assert_true(placement_fill(p) > 0);
	free(p);
}

/* By capacity; never two of a host; one that leaves gives all, once. */
static void weighted_and_drained(void **state)
{
	struct placement *p = calloc(1, sizeof(*p));
	unsigned int before, copied;

	p->replicas = 2;
	p->shard_bytes = 1;
	add_server(p, 1ULL << 40);
	add_server(p, 1ULL << 40);
	add_server(p, 2ULL << 40);
	add_server(p, 2ULL << 40);
	settle(p);
	assert_in_range(places_of(p, 1), 335, 348);
	assert_in_range(places_of(p, 4), 676, 690);
	before = places_of(p, 1);
	p->servers[0].leaves = true;
	p->servers[0].takes = false;
	copied = settle(p);
	assert_int_equal(places_of(p, 1), 0);
	assert_in_range(copied, before, before * 15 / 10);
	/* No room anywhere: nothing is placed, and said so. */
	p->servers[1].leaves = true;
	p->servers[1].takes = false;
	p->servers[2].room = p->servers[3].room = 0;
	p->replicas = 3;
	placement_fill(p);
	assert_true(p->unplaced > 0);
	free(p);
}

/* One replica in each rack, and never a second one: with a rack lost a place stays empty. */
static void racks_hold_one_each(void **state)
{
	struct placement *p = calloc(1, sizeof(*p));

	p->replicas = 3;
	p->shard_bytes = 1;
	for (int i = 0; i < 6; i++) {
		add_server(p, 1ULL << 40);
		snprintf(p->servers[i].rack, sizeof(p->servers[i].rack), "rack%d", i / 2);
	}
	settle(p);
	for (unsigned int s = 0; s < NR_SHARDS; s++) {
		unsigned int racks = 0;

		for (unsigned int k = 0; k < PROTO_MAX_PLACES; k++)
			if (p->shards[s][k].server)
				racks |= 1U << (p->shards[s][k].server - 1) / 2;
		assert_int_equal(racks, 7);
	}
	for (uint32_t id = 1; id <= 6; id++)
		assert_in_range(places_of(p, id), 500, 524);
	/* Both hosts of one rack go: nobody may take their places. */
	for (int i = 0; i < 2; i++) {
		p->servers[i].leaves = true;
		p->servers[i].takes = false;
	}
	p->unplaced = 0;
	placement_fill(p);
	assert_true(p->unplaced > 0);
	for (uint32_t id = 3; id <= 6; id++)
		assert_in_range(places_of(p, id), 500, 524);
	/* A server in a fourth rack takes all of them. */
	add_server(p, 4ULL << 40);
	snprintf(p->servers[6].rack, sizeof(p->servers[6].rack), "rack3");
	settle(p);
	assert_int_equal(places_of(p, 7), NR_SHARDS);
	free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fifth_server_moves_its_share),
		cmocka_unit_test(small_changes_move_nothing),
		cmocka_unit_test(weighted_and_drained),
		cmocka_unit_test(racks_hold_one_each),
	};

	return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
