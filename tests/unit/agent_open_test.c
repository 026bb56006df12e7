// SPDX-License-Identifier: GPL-2.0-or-later
/* The agent's core: LOOKUP, OPEN, CLOSE, and what they do with leases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <errno.h>
#include <cmocka.h>

#include "agent_world.h"

static void upcall_of(struct agent_world *w, uint8_t image, const char *name, uint16_t type,
		      uint32_t flags, uint64_t epoch)
{
	struct dm_dedup_upcall up = {
		.size = sizeof(up),
		.type = type,
		.cookie = w->next_cookie++,
		.info = { .volume = 10, .image = { image }, .flags = flags, .lease_epoch = epoch,
			  .committed_cut = 3, .size = 1000 * AGENT_WORLD_BLOCK },
	};

	strcpy(up.info.name, name);
	up.info.root[0] = 8;
	if (type == DM_DEDUP_UP_LOOKUP)
		memset(&up.info, 0, offsetof(struct dm_dedup_volume_info, name));
	agent_upcalls(w->agent, &up, 1);
}

static void upcall(struct agent_world *w, uint16_t type, uint32_t flags, uint64_t epoch)
{
	upcall_of(w, 5, "web-01", type, flags, epoch);
}

static void finish_replies(struct agent_world *w)
{
	unsigned int n;

	for (n = 0; n < 10000 && !w->replies && agent_world_step(w); n++)
		;
	assert_int_equal(w->replies, 1);
	w->replies = 0;
}

static void test_lookup(void **state)
{
	struct agent_world *w = agent_world_new(1);

	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, 0);
	assert_int_equal(w->reply_info.size, 1000 * AGENT_WORLD_BLOCK);
	assert_int_equal(w->reply_info.image[0], 5);
	w->image_error = -ENOENT;
	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, ENOENT);
	agent_world_free(w);
}

/* Two volumes were opened by one name, the second when that was another image's. */
static void test_lookup_of_a_name_that_two_have(void **state)
{
	struct agent_world *w = agent_world_new(1);
	uint8_t image;

	for (image = 5; image <= 6; image++) {
		upcall_of(w, image, "web-01", DM_DEDUP_UP_OPEN, 0, 0);
		finish_replies(w);
		upcall_of(w, image, "web-01", DM_DEDUP_UP_CLOSE, 0, 7);
	}
	w->meta_dead = true;
	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, EEXIST);
	upcall_of(w, 0, "05000000-0000-0000-0000-000000000000", DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, 0);
	assert_int_equal(w->reply_info.image[0], 5);
	agent_forget_volume(w->agent, &(struct uuid){ { 5 } });
	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, 0);
	assert_int_equal(w->reply_info.image[0], 6);
	/* The meta server knows which one has the name. */
	upcall_of(w, 7, "web-01", DM_DEDUP_UP_OPEN, DM_DEDUP_VOL_GRANTED, 6);
	finish_replies(w);
	w->meta_dead = false;
	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, 0);
	agent_world_free(w);
}

struct open_case {
	const char *what;
	uint32_t flags;
	uint64_t epoch;
	bool meta_dead;
	int lease_error;
	int error;
	uint64_t reply_epoch, reply_cut;
	uint8_t reply_root;
	bool confirm_only, readonly;
	unsigned int fenced;
};

static const struct open_case open_cases[] = {
	{ "fresh: a lease is taken", 0, 0, false, 0, 0, 7, 4, 9, false, false, 0 },
	{ "read-only: no lease", DM_DEDUP_VOL_READONLY, 0, false, 0, 0, 0, 4, 9, false, true, 0 },
	{ "ephemeral: no lease", DM_DEDUP_VOL_EPHEMERAL, 0, false, 0, 0, 0, 4, 9, false, true, 0 },
	{ "dirty: only confirmed", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED, 6, false, 0, 0, 6, 4,
	  9, true, false, 0 },
	{ "dirty, lease broken: fenced", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED, 6, false,
	  -ESTALE, ESTALE, 0, 0, 0, true, false, 1 },
	{ "clean, lease broken: refused", DM_DEDUP_VOL_GRANTED, 6, false, -ESTALE, ESTALE, 0, 0, 0,
	  false, false, 0 },
	{ "in use elsewhere", 0, 0, false, -EBUSY, EBUSY, 0, 0, 0, false, false, 0 },
	{ "offline with a grant: from the record", DM_DEDUP_VOL_GRANTED, 6, true, 0, 0, 6, 3, 8,
	  false, false, 0 },
	{ "offline, dirty, with a grant", DM_DEDUP_VOL_GRANTED | DM_DEDUP_VOL_DIRTY, 6, true, 0, 0,
	  6, 3, 8, true, false, 0 },
	{ "dirty, read-only: its lease is confirmed", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED |
	  DM_DEDUP_VOL_READONLY, 6, false, 0, 0, 6, 4, 9, true, false, 0 },
	{ "dirty, now ephemeral: refused", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED |
	  DM_DEDUP_VOL_EPHEMERAL, 6, false, 0, EBUSY, 0, 0, 0, false, false, 0 },
	{ "dirty and ephemeral: on its own root", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED |
	  DM_DEDUP_VOL_EPHEMERAL, 0, false, 0, 0, 0, 3, 8, false, true, 0 },
	{ "in trouble, with a grant: from the record", DM_DEDUP_VOL_GRANTED, 6, false, -EAGAIN, 0, 6, 3,
	  8, false, false, 0 },
	{ "offline, read-only: from the record", DM_DEDUP_VOL_READONLY, 0, true, 0, 0, 0, 3, 8,
	  false, true, 0 },
	{ "offline without a grant: times out", 0, 0, true, 0, ETIMEDOUT, 0, 0, 0, false, false,
	  0 },
};

static void test_open(void **state)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(open_cases); i++) {
		const struct open_case *c = &open_cases[i];
		struct agent_world *w = agent_world_new(1);

		print_message("# %s\n", c->what);
		w->meta_dead = c->meta_dead;
		w->lease_error = c->lease_error;
		upcall(w, DM_DEDUP_UP_OPEN, c->flags, c->epoch);
		finish_replies(w);
		assert_int_equal(w->reply_error, c->error);
		assert_int_equal(w->lease_was_confirm_only, c->confirm_only);
		assert_int_equal(w->lease_was_readonly, c->readonly);
		assert_int_equal(w->fenced, c->fenced);
		if (!c->error) {
			assert_int_equal(w->reply_info.lease_epoch, c->reply_epoch);
			assert_int_equal(w->reply_info.committed_cut, c->reply_cut);
			assert_int_equal(w->reply_info.root[0], c->reply_root);
		}
		agent_world_free(w);
	}
}

static void test_a_grant_from_the_record_is_confirmed_later(void **state)
{
	static const int troubles[] = { -EKEYEXPIRED, -ENOSPC, -EIO, -EACCES, -EPROTO, -EBUSY, -ENOENT };
	struct agent_world *w = agent_world_new(1);
	size_t i;

	w->meta_dead = true;
	upcall(w, DM_DEDUP_UP_OPEN, DM_DEDUP_VOL_GRANTED, 6);
	finish_replies(w);
	agent_world_run(w, 60000);
	assert_int_equal(w->fenced, 0);
	w->meta_dead = false;
	/* What the meta server answers when it is in trouble says nothing about the lease. */
	for (i = 0; i < ARRAY_SIZE(troubles); i++) {
		w->lease_error = troubles[i];
		agent_world_run(w, 60000);
		assert_int_equal(w->fenced, 0);
	}
	w->lease_error = -ESTALE; /* it was broken meanwhile */
	agent_world_run(w, 60000);
	assert_int_equal(w->fenced, 1);
	assert_true(w->lease_was_confirm_only);
	agent_world_run(w, 60000);
	assert_int_equal(w->fenced, 1);
	agent_world_free(w);
}

/* A volume that needs no lease has none to be asked for. */
static void test_a_record_without_a_grant_is_not_confirmed(void **state)
{
	struct agent_world *w = agent_world_new(1);

	w->meta_dead = true;
	upcall(w, DM_DEDUP_UP_OPEN, DM_DEDUP_VOL_READONLY, 0);
	finish_replies(w);
	w->meta_dead = false;
	w->lease_error = -ESTALE;
	agent_world_run(w, 60000);
	assert_false(w->lease_was_confirm_only);
	assert_int_equal(w->fenced, 0);
	agent_world_free(w);
}

/* An answer about an earlier grant says nothing about the one that came after it. */
static void test_a_late_answer_about_an_earlier_grant(void **state)
{
	struct agent_world *w = agent_world_new(1);
	uint64_t id;

	w->meta_dead = true;
	upcall(w, DM_DEDUP_UP_OPEN, DM_DEDUP_VOL_GRANTED, 6);
	finish_replies(w);
	w->meta_dead = false;
	w->hold_confirm = true;
	agent_world_run(w, 60000);
	id = w->held_confirm;
	assert_true(id);
	w->hold_confirm = false;
	upcall(w, DM_DEDUP_UP_CLOSE, 0, 6);
	upcall(w, DM_DEDUP_UP_OPEN, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_info.lease_epoch, 7);
	agent_lease_done(w->agent, id, -ESTALE, NULL);
	assert_int_equal(w->fenced, 0);
	agent_world_free(w);
}

static void test_close(void **state)
{
	struct agent_world *w = agent_world_new(1);

	upcall(w, DM_DEDUP_UP_CLOSE, 0, 6);
	assert_int_equal(w->wanted_push, 0);
	upcall(w, DM_DEDUP_UP_CLOSE, DM_DEDUP_VOL_DIRTY, 6);
	assert_int_equal(w->wanted_push, 1);
	upcall(w, DM_DEDUP_UP_CLOSE, DM_DEDUP_VOL_EPHEMERAL | DM_DEDUP_VOL_DIRTY, 0);
	assert_int_equal(w->wanted_push, 1);
	assert_int_equal(w->discarded, 1);
	upcall(w, DM_DEDUP_UP_SPACE, 0, 0);
	assert_int_equal(w->urgent_push, 1);
	agent_world_free(w);
}

/* An answer that the cache did not take, or took and then refused, opens nothing. */
static void test_an_open_that_came_to_nothing(void **state)
{
	struct agent_world *w = agent_world_new(1);
	const struct uuid image = { { 5 } };
	uint64_t cookie;

	upcall(w, DM_DEDUP_UP_OPEN, 0, 0);
	assert_true(agent_opens_image(w->agent, &image));
	finish_replies(w);
	cookie = w->next_cookie - 1;
	agent_reply_refused(w->agent, cookie + 1);
	assert_true(agent_opens_image(w->agent, &image));
	agent_reply_refused(w->agent, cookie);
	assert_false(agent_opens_image(w->agent, &image));
	upcall(w, DM_DEDUP_UP_OPEN, 0, 0);
	finish_replies(w);
	assert_true(agent_opens_image(w->agent, &image));
	w->now += 61 * 1000000000ULL;
	assert_false(agent_opens_image(w->agent, &image));
	upcall(w, DM_DEDUP_UP_OPEN, 0, 0);
	finish_replies(w);
	upcall(w, DM_DEDUP_UP_CLOSE, 0, 7);
	assert_false(agent_opens_image(w->agent, &image));
	agent_world_free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lookup),
		cmocka_unit_test(test_lookup_of_a_name_that_two_have),
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_a_grant_from_the_record_is_confirmed_later),
		cmocka_unit_test(test_a_record_without_a_grant_is_not_confirmed),
		cmocka_unit_test(test_a_late_answer_about_an_earlier_grant),
		cmocka_unit_test(test_close),
		cmocka_unit_test(test_an_open_that_came_to_nothing),
	};

	return cmocka_run_group_tests_name("agent_open", tests, NULL, NULL);
}
