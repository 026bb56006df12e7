// SPDX-License-Identifier: GPL-2.0-or-later
/* Format, check, repair and dump of cache files, well and damaged. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <unistd.h>
#include "cache/cache.h"
#include "cache/internal.h"

#define MIB (1ULL << 20)

struct env {
	char path[64];
	struct cache_params params;
	struct error err;
	char problems[4096];
};

static int setup(void **state)
{
	struct env *e = calloc(1, sizeof(*e));
	int fd;

	assert_non_null(e);
	strcpy(e->path, "/tmp/vmdedup-cache-XXXXXX");
	fd = mkstemp(e->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 64 * MIB), 0);
	close(fd);
	e->params.block_shift = 16;
	e->params.label = "test";
	*state = e;
	return 0;
}

static int teardown(void **state)
{
	struct env *e = *state;

	unlink(e->path);
	free(e);
	return 0;
}

static void add_problem(void *ctx, const char *text)
{
	struct env *e = ctx;
	size_t at = strlen(e->problems);

	snprintf(e->problems + at, sizeof(e->problems) - at, "%s\n", text);
}

static struct cache_report check(struct env *e)
{
	struct cache_report report;
	int r;

	e->problems[0] = 0;
	r = cache_check(e->path, add_problem, e, &report, &e->err);
	if (r)
		fail_msg("%s", e->err.text);
	return report;
}

static void poke(struct env *e, u64 offset, const void *bytes, size_t n)
{
	int fd = open(e->path, O_RDWR);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, bytes, n, offset), n);
	close(fd);
}

static void format(struct env *e, struct cache_info *info)
{
	int r = cache_format(e->path, &e->params, NULL, NULL, info, &e->err);

	if (r)
		fail_msg("%s", e->err.text);
}

static void count_progress(void *ctx, uint64_t done, uint64_t total)
{
	uint64_t *last = ctx;

	assert_true(done <= total && done >= *last);
	*last = done;
}

static void test_format(void **state)
{
	struct env *e = *state;
	struct cache_report report;
	struct cache_info info;
	uint64_t last = 0;

	assert_int_equal(uuid_generate(&e->params.cluster), 0);
	assert_int_equal(cache_format(e->path, &e->params, count_progress, &last, &info, &e->err),
			 0);
	assert_int_equal(last, info.nr_slots << 16);
	assert_string_equal(info.label, "test");
	assert_true(uuid_equal(&info.cluster, &e->params.cluster));
	assert_false(uuid_is_null(&info.cache));
	assert_int_equal(info.data_start % MIB, 0);
	assert_true(info.nr_slots > 700);
	report = check(e);
	assert_int_equal(report.problems, 0);
	assert_int_equal(report.free, info.nr_slots);
	assert_int_equal(report.clean + report.dirty + report.volumes, 0);

	/* A second time only by force, and then it is another cache. */
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &e->err), -EEXIST);
	assert_non_null(strstr(e->err.text, "holds a cache"));
	e->params.force = true;
	format(e, &report.info);
	assert_false(uuid_equal(&info.cache, &report.info.cache));
	assert_int_equal(check(e).problems, 0);
}

static void test_format_refuses(void **state)
{
	struct env *e = *state;
	struct error err;

	poke(e, 510, "\x55\xaa", 2);
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -EEXIST);
	assert_non_null(strstr(err.text, "is not empty"));
	e->params.force = true;
	format(e, NULL);
	e->params.force = false;

	assert_int_equal(truncate(e->path, cache_min_bytes(16) - 1), 0);
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "needs at least"));
	assert_int_equal(truncate(e->path, 0), 0);
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -ENOSPC);
	assert_int_equal(truncate(e->path, cache_min_bytes(16)), 0);
	format(e, NULL);
	assert_int_equal(check(e).free, DEDUP_MIN_SLOTS);

	e->params.block_shift = 11;
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -EINVAL);
	e->params.block_shift = 16;
	e->params.label = "0123456789012345678901234567890123456789012345678901234567890123";
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -EINVAL);
	e->params.label = NULL;
	e->params.journal = 60 << 10;
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -EINVAL);
	e->params.journal = (64 << 10) + 512;
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.text, "64 KiB"));
	e->params.journal = 0;
	assert_int_equal(cache_format("/nonexistent/x", &e->params, NULL, NULL, NULL, &err),
			 -ENOENT);
	assert_int_equal(cache_format("/dev/null", &e->params, NULL, NULL, NULL, &err), -ENOTBLK);
	assert_int_equal(cache_format("/tmp", &e->params, NULL, NULL, NULL, &err), -ENOTBLK);

	/* Sparse, so that it costs nothing: more slots than there may be. */
	assert_int_equal(truncate(e->path, 1ULL << 42), 0);
	e->params.block_shift = 12;
	e->params.force = true;
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &err), -EFBIG);
}

static void test_not_formatted(void **state)
{
	struct env *e = *state;
	struct cache_report report;
	struct cache_info info;
	unsigned int repaired;

	assert_int_equal(cache_info_read(e->path, &info, &e->err), -EINVAL);
	assert_non_null(strstr(e->err.text, "format it first"));
	assert_int_equal(cache_check(e->path, NULL, NULL, &report, &e->err), -EINVAL);
	assert_int_equal(cache_repair(e->path, &repaired, &e->err), -EINVAL);
	assert_int_equal(truncate(e->path, 100), 0);
	assert_int_equal(cache_info_read(e->path, &info, &e->err), -EINVAL);
}

static void test_superblocks(void **state)
{
	static const u8 junk[512] = { 'j', 'u', 'n', 'k' };
	struct env *e = *state;
	struct cache_report report;
	struct cache_info info, again;
	unsigned int repaired;
	struct dedup_disk_super d;
	int fd;

	format(e, &info);
	for (int i = 0; i < 2; i++) {
		poke(e, i ? 64 * MIB - 4096 : 4096, junk, sizeof(junk));
		report = check(e);
		assert_int_equal(report.problems, 1);
		assert_true(report.repairable);
		assert_non_null(strstr(e->problems, i ? "second" : "first"));
		assert_int_equal(cache_info_read(e->path, &again, &e->err), 0);
		assert_memory_equal(&info, &again, sizeof(info));
		assert_int_equal(cache_repair(e->path, &repaired, &e->err), 0);
		assert_int_equal(repaired, 1);
		assert_int_equal(check(e).problems, 0);
		assert_int_equal(cache_repair(e->path, &repaired, &e->err), 0);
		assert_int_equal(repaired, 0);
	}
	/* A disk that has grown finds its second superblock where it was. */
	assert_int_equal(truncate(e->path, 80 * MIB), 0);
	assert_int_equal(check(e).problems, 0);
	/* One that has shrunk is refused. */
	assert_int_equal(truncate(e->path, 60 * MIB), 0);
	assert_int_equal(cache_info_read(e->path, &again, &e->err), -EINVAL);
	assert_non_null(strstr(e->err.text, "has only"));
	assert_int_equal(truncate(e->path, 64 * MIB), 0);

	/* A newer version. */
	fd = open(e->path, O_RDWR);
	assert_int_equal(pread(fd, &d, sizeof(d), 4096), sizeof(d));
	d.version = cpu_to_le32(2);
	d.crc = 0;
	d.crc = cpu_to_le32(dedup_crc32c(~0U, &d, sizeof(d)));
	close(fd);
	poke(e, 4096, &d, sizeof(d));
	assert_int_equal(cache_info_read(e->path, &again, &e->err), -EPROTONOSUPPORT);
	assert_non_null(strstr(e->err.text, "newer version"));

	d.magic ^= 1;
	poke(e, 4096, &d, sizeof(d));
	poke(e, 64 * MIB - 4096, junk, sizeof(junk));
	assert_int_equal(cache_info_read(e->path, &again, &e->err), -EINVAL);
	/* The magic is there, the rest is not: not "format it first". */
	d.magic ^= 1;
	d.crc ^= 1;
	poke(e, 4096, &d, sizeof(d));
	assert_int_equal(cache_info_read(e->path, &again, &e->err), -EUCLEAN);
	assert_non_null(strstr(e->err.text, "both superblocks"));
	e->params.force = false;
	assert_int_equal(cache_format(e->path, &e->params, NULL, NULL, NULL, &e->err), -EEXIST);
}

/* ---- a cache with content ---- */

struct content {
	struct dedup_change changes[64];
	unsigned int nr;
	unsigned int at;
};

static bool next(void *ctx, struct dedup_change *change)
{
	struct content *c = ctx;

	if (c->at == c->nr)
		return false;
	*change = c->changes[c->at++];
	return true;
}

static struct dedup_change *add(struct content *c, enum dedup_change_kind kind, u64 index)
{
	struct dedup_change *ch = &c->changes[c->nr++];

	memset(ch, 0, sizeof(*ch));
	ch->kind = kind;
	ch->index = index;
	return ch;
}

static void add_volume(struct content *c, u64 index)
{
	struct dedup_volume_rec *v = &add(c, DEDUP_CHANGE_VOLUME, index)->volume;

	v->id = index + 100;
	v->image[0] = index + 1;
	v->size = 10 * 65536;
	v->cut_counter = 3;
	v->committed_cut = 1;
	snprintf(v->name, sizeof(v->name), "vm%llu", index);
}

static struct dedup_slot_rec *add_clean(struct content *c, u64 slot)
{
	struct dedup_slot_rec *s = &add(c, DEDUP_CHANGE_SLOT, slot)->slot;

	s->state = DEDUP_SLOT_CLEAN;
	s->seq = 1ULL << 40 | slot;
	s->fp[0] = slot;
	return s;
}

static struct dedup_slot_rec *add_dirty(struct content *c, u64 slot, u64 block, u64 cut)
{
	struct dedup_slot_rec *s = add_clean(c, slot);

	s->state = DEDUP_SLOT_DIRTY;
	s->volume = 100;
	s->block = block;
	s->cut = cut;
	s->bitmap[0] = 0xf;
	return s;
}

/* Opens the cache as the kernel does, commits, and leaves with or without a checkpoint. */
static void fill(struct env *e, struct content *c, bool checkpoint)
{
	static const u8 incarnation[16] = { 1 };
	struct dedup_why why = { "" };
	struct dedup_ledger l;
	struct disk_file f;
	bool more;
	u32 nr;

	assert_int_equal(disk_file_open(&f, e->path, true, &e->err), 0);
	if (dedup_ledger_open(&l, &f.disk, &why))
		fail_msg("%s", why.text);
	if (dedup_ledger_start(&l, incarnation, &why))
		fail_msg("%s", why.text);
	assert_int_equal(dedup_ledger_commit(&l, next, c, &nr, &more), 0);
	assert_int_equal(nr, c->nr);
	assert_false(more);
	if (checkpoint)
		assert_int_equal(dedup_ledger_stop(&l, &why), 0);
	dedup_ledger_close(&l);
	disk_file_close(&f);
}

static void some_content(struct content *c)
{
	memset(c, 0, sizeof(*c));
	add_volume(c, 0);
	add_volume(c, 4095);
	add_clean(c, 0);
	add_clean(c, 5);
	add_dirty(c, 6, 9, 3);
	add_dirty(c, 700, 9, 2);
	add_dirty(c, 701, 2, 1);
}

static int dump_volume(void *ctx, uint64_t index, const struct dedup_volume_rec *rec)
{
	struct env *e = ctx;
	char line[300];

	snprintf(line, sizeof(line), "v%llu %s", (u64)index, rec->name);
	add_problem(e, line);
	return 0;
}

static int dump_slot(void *ctx, uint64_t slot, const struct dedup_slot_rec *rec)
{
	struct env *e = ctx;
	char line[64];

	snprintf(line, sizeof(line), "s%llu %u", (u64)slot, rec->state);
	add_problem(e, line);
	return slot == 700 ? 7 : 0;
}

static void test_content(void **state)
{
	struct env *e = *state;
	struct cache_visitor v = { dump_volume, dump_slot, e };
	struct cache_report report;
	struct content c;

	format(e, NULL);
	for (int checkpoint = 0; checkpoint < 2; checkpoint++) {
		some_content(&c);
		fill(e, &c, checkpoint);
		report = check(e);
		if (report.problems)
			fail_msg("%s", e->problems);
		assert_int_equal(report.clean, 2);
		assert_int_equal(report.dirty, 2);
		assert_int_equal(report.void_dirty, 1);
		assert_int_equal(report.volumes, 2);
		assert_int_equal(report.journal_changes, checkpoint ? 0 : 7);
		assert_int_equal(report.info.incarnation_nr, checkpoint + 1);
	}
	e->problems[0] = 0;
	assert_int_equal(cache_dump(e->path, &v, NULL, &e->err), 7);
	assert_string_equal(e->problems, "v0 vm0\nv4095 vm4095\ns0 1\ns5 1\ns6 2\ns700 2\n");
}

/* @problems 0: any number from one on: records miss what a lost page held. */
static void expect(struct env *e, u64 problems, const char *text)
{
	struct cache_report report = check(e);

	if (!report.problems || (problems && report.problems != problems) || !strstr(e->problems, text))
		fail_msg("%llu problems, wanted %llu with '%s':\n%s", (u64)report.problems, problems,
			 text, e->problems);
	assert_false(report.repairable);
}

static void test_nonsense(void **state)
{
	struct env *e = *state;
	struct content c = { 0 };

	format(e, NULL);
	some_content(&c);
	add_clean(&c, 9)->seq = 1ULL << 40 | 5;
	fill(e, &c, false);
	expect(e, 1, "slots 5 and 9 have the same sequence");

	memset(&c, 0, sizeof(c));
	add_clean(&c, 9)->seq = 50ULL << 40;
	fill(e, &c, true);
	expect(e, 1, "slot 9: its sequence is of incarnation 50");

	memset(&c, 0, sizeof(c));
	add_dirty(&c, 9, 9, 3);
	fill(e, &c, false);
	expect(e, 1, "slots 6 and 9 are both the overlay of cut 3 of block 9 of volume 100");

	memset(&c, 0, sizeof(c));
	add_dirty(&c, 9, 10, 4)->volume = 101;
	add_dirty(&c, 10, 10, 4);
	fill(e, &c, false);
	expect(e, 3, "slot 9: an overlay of volume 101, which does not exist");
	assert_non_null(strstr(e->problems, "which has 10 blocks"));
	assert_non_null(strstr(e->problems, "whose counter is 3"));

	/* What the kernel would refuse to open. */
	memset(&c, 0, sizeof(c));
	add_volume(&c, 7);
	c.changes[0].volume.size++;
	fill(e, &c, false);
	expect(e, 4, "volume 107: its size is none that a volume can have");
	memset(&c, 0, sizeof(c));
	add_volume(&c, 7);
	c.changes[0].volume.cut_counter = 1;
	fill(e, &c, false);
	expect(e, 4, "volume 107: its cut counter does not follow its committed cut");
}

static u8 peek(struct env *e, u64 offset)
{
	int fd = open(e->path, O_RDONLY);
	u8 b = 0;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &b, 1, offset), 1);
	close(fd);
	return b;
}

static void rot(struct env *e, u64 offset)
{
	u8 b = peek(e, offset) ^ 0x40;

	poke(e, offset, &b, 1);
}

/* One byte of each page that counts, in turn: never an older state, always named. */
static void test_rot(void **state)
{
	struct env *e = *state;
	struct dedup_why why = { "" };
	struct dedup_ledger l;
	struct disk_file f;
	struct content c;
	u32 seen = 0;

	format(e, NULL);
	some_content(&c);
	fill(e, &c, true);
	some_content(&c);
	fill(e, &c, true);
	assert_int_equal(disk_file_open(&f, e->path, false, &e->err), 0);
	assert_int_equal(dedup_ledger_open(&l, &f.disk, &why), 0);
	for (u32 page = 0; page < l.sb.table_pages; page++) {
		struct dedup_disk_entry *en = &l.table.dir[page];
		u64 at = l.sb.table_start + 4096ULL * (le32_to_cpu(en->place) * l.sb.table_pages + page);

		if (!en->seq)
			continue;
		seen++;
		rot(e, at + 100);
		expect(e, 0, "table page");
		assert_int_equal(cache_dump(e->path, &(struct cache_visitor){ 0 }, NULL, &e->err),
				 -EUCLEAN);
		rot(e, at + 100);
		assert_int_equal(check(e).problems, 0);
	}
	assert_true(seen >= 4);
	for (u32 page = 0; page < l.sb.dir_pages; page++) {
		struct dedup_disk_entry *en = &l.table.root[page];
		u64 at = l.sb.dir_start + 4096ULL * (le32_to_cpu(en->place) * l.sb.dir_pages + page);

		if (!en->seq)
			continue;
		rot(e, at + 100);
		expect(e, 1, "directory page");
		rot(e, at + 100);
	}
	/* The last append of a clean end: the superblock knows that it was durable. */
	rot(e, l.sb.journal_start + 4096ULL * l.journal.checkpoint_page + 200);
	expect(e, 1, "journal");
	dedup_ledger_close(&l);
	disk_file_close(&f);
}

static void test_rotten_journal(void **state)
{
	struct env *e = *state;
	struct dedup_why why = { "" };
	struct dedup_ledger l;
	struct disk_file f;
	struct content c;
	u64 journal;
	u8 zeros[4096] = { 0 };
	bool more;
	u32 nr;

	format(e, NULL);
	assert_int_equal(disk_file_open(&f, e->path, true, &e->err), 0);
	assert_int_equal(dedup_ledger_open(&l, &f.disk, &why), 0);
	assert_int_equal(dedup_ledger_start(&l, zeros, &why), 0);
	journal = l.sb.journal_start + 4096ULL * (l.journal.checkpoint_page + 1);
	for (int i = 0; i < 3; i++) {
		some_content(&c);
		assert_int_equal(dedup_ledger_commit(&l, next, &c, &nr, &more), 0);
	}
	dedup_ledger_close(&l);
	disk_file_close(&f);
	assert_int_equal(check(e).problems, 0);

	/* In the middle of the chain, with valid ones behind it. */
	for (int i = 0; i < 2; i++) {
		rot(e, journal + 4096ULL * i + 300);
		expect(e, 1, "is damaged");
		rot(e, journal + 4096ULL * i + 300);
		rot(e, journal + 4096ULL * i + 16);
		expect(e, 1, "is damaged");
		rot(e, journal + 4096ULL * i + 16);
	}
	assert_int_equal(check(e).problems, 0);
	/* The last one: as if it had been torn. */
	rot(e, journal + 4096 * 2 + 300);
	assert_int_equal(check(e).problems, 0);
	/* Everything. */
	for (u64 at = MIB; at < 3 * MIB; at += 4096)
		poke(e, at, zeros, sizeof(zeros));
	expect(e, 1, "the journal holds no append");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_format, setup, teardown),
		cmocka_unit_test_setup_teardown(test_format_refuses, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_formatted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_superblocks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_content, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nonsense, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rotten_journal, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
