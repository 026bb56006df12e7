// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/uuid.h"
#include "cli/cli.h"
#include "cli/ui.h"

#define NS_PER_S   1000000000ULL
#define REDRAW_NS  (NS_PER_S / 10)
#define TABLE_COLUMNS 16

/* ---- errors and exit codes ---- */

int cli_exit_of(int r)
{
	switch (-r) {
	case 0:
		return EXIT_OK;
	case ENOENT:
		return EXIT_NOT_FOUND;
	case EEXIST:
	case EBUSY:
		return EXIT_IN_THE_WAY;
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case ENOTCONN:
	case ECONNREFUSED:
	case ENOPROTOOPT: /* the module is not loaded */
		return EXIT_UNREACHABLE;
	case EINTR:
	case ECANCELED:
		return EXIT_INTERRUPTED;
	default:
		return EXIT_FAILED;
	}
}

int cli_fail(const struct error *err)
{
	fprintf(stderr, "vmdedup: %s\n", *err->text ? err->text : strerror(-err->code));
	return err->code ? cli_exit_of(err->code) : EXIT_FAILED;
}

/* ---- signals: the one thing that has to be global, a handler sees nothing else ---- */

static volatile sig_atomic_t stopped;
static int stop_pipe[2] = { -1, -1 };

static void on_signal(int sig)
{
	int saved = errno;

	stopped = 1;
	if (write(stop_pipe[1], "x", 1) < 0)
		errno = saved; /* the pipe is full: it is readable, which is all that counts */
	errno = saved;
}

void cli_catch_signals(void)
{
	/* A second one ends the process at once. */
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESETHAND };

	if (stop_pipe[0] < 0 && pipe2(stop_pipe, O_CLOEXEC | O_NONBLOCK))
		return;
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
}

bool cli_stopped(void)
{
	return stopped;
}

int cli_stop_fd(void)
{
	return stop_pipe[0];
}

/* ---- progress ---- */

void progress_start(struct progress *p, const char *label, uint64_t total)
{
	*p = (struct progress){ .label = label, .total = total, .start_ns = clock_mono_ns() };
	p->on = isatty(STDERR_FILENO) && total;
}

static void eta_text(uint64_t seconds, char text[32])
{
	if (seconds >= 3600)
		snprintf(text, 32, "%u:%02u:%02u", (unsigned int)(seconds / 3600),
			 (unsigned int)(seconds / 60 % 60), (unsigned int)(seconds % 60));
	else
		snprintf(text, 32, "%u:%02u", (unsigned int)(seconds / 60),
			 (unsigned int)(seconds % 60));
}

void progress_update(struct progress *p, uint64_t done)
{
	char bar[41], size[32], all[32], rate[32], eta[32] = "-:--";
	struct winsize ws = { 0 };
	uint64_t now = clock_mono_ns();
	double s = (now - p->start_ns) / 1e9, speed = s > 0 ? done / s : 0;
	int width, fill;

	if (!p->on || (now - p->drawn_ns < REDRAW_NS && done < p->total))
		return;
	p->drawn_ns = now;
	ioctl(STDERR_FILENO, TIOCGWINSZ, &ws);
	width = ws.ws_col >= 100 || !ws.ws_col ? 40 : ws.ws_col >= 80 ? 20 : 0;
	fill = (int)((double)done / p->total * width);
	memset(bar, ' ', width);
	memset(bar, '=', fill);
	if (fill && fill < width)
		bar[fill - 1] = '>';
	bar[width] = '\0';
	if (speed > 0)
		eta_text((p->total - done) / speed, eta);
	fprintf(stderr, "\r%s %3d%% %s%s%s%s of %s  %s/s  ETA %s\033[K", p->label,
		(int)(100.0 * done / p->total), width ? "[" : "", bar, width ? "] " : "",
		size_to_text(done, size), size_to_text(p->total, all),
		size_to_text((uint64_t)speed, rate), eta);
	fflush(stderr);
}

void progress_end(struct progress *p)
{
	if (p->on && p->drawn_ns) {
		fprintf(stderr, "\r\033[K");
		fflush(stderr);
	}
	p->on = false;
}

/* ---- tables ---- */

struct table {
	const char *const *heads;
	size_t columns, count, room;
	char **cells;
};

struct table *table_new(const char *const *heads, size_t columns)
{
	struct table *t = columns <= TABLE_COLUMNS ? calloc(1, sizeof(*t)) : NULL;

	if (t)
		*t = (struct table){ .heads = heads, .columns = columns };
	return t;
}

void table_cell(struct table *t, const char *fmt, ...)
{
	va_list ap;

	if (!t)
		return;
	if (t->count == t->room) {
		size_t room = t->room ? t->room * 2 : 64;
		char **cells = realloc(t->cells, room * sizeof(*cells));

		if (!cells)
			return;
		t->cells = cells;
		t->room = room;
	}
	va_start(ap, fmt);
	if (vasprintf(&t->cells[t->count], fmt, ap) < 0)
		t->cells[t->count] = NULL;
	va_end(ap);
	t->count++;
}

static const char *table_text(const struct table *t, size_t row, size_t column, bool *left)
{
	const char *head = t->heads[column];
	size_t at = (row - 1) * t->columns + column;

	*left = *head == '<';
	if (!row)
		return head + *left;
	return at < t->count && t->cells[at] ? t->cells[at] : "";
}

void table_print(struct table *t)
{
	int widths[TABLE_COLUMNS] = { 0 };
	size_t rows;
	bool left;

	if (!t)
		return;
	rows = 1 + (t->count + t->columns - 1) / t->columns;
	for (size_t row = 0; row < rows; row++)
		for (size_t col = 0; col < t->columns; col++)
			widths[col] = MAX(widths[col],
					  (int)strlen(table_text(t, row, col, &left)));
	for (size_t row = 0; row < rows; row++) {
		for (size_t col = 0; col < t->columns; col++) {
			const char *text = table_text(t, row, col, &left);
			int width = left && col + 1 == t->columns ? 0 : widths[col];

			printf("%s%*s", col ? "  " : "", left ? -width : width, text);
		}
		putchar('\n');
	}
	for (size_t i = 0; i < t->count; i++)
		free(t->cells[i]);
	free(t->cells);
	free(t);
}

/* ---- JSON ---- */

void json_show(json_t *j)
{
	if (!j || json_dumpf(j, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII))
		fprintf(stderr, "vmdedup: cannot write JSON\n");
	putchar('\n');
	json_decref(j);
}

json_t *json_fp(const uint8_t *data, size_t len)
{
	char hex[FP_HEX_SIZE];
	struct fp fp;

	if (len != FP_SIZE)
		return json_null();
	memcpy(fp.b, data, FP_SIZE);
	return json_string(fp_to_hex(&fp, hex));
}

json_t *json_uuid(const uint8_t *data, size_t len)
{
	char text[UUID_TEXT_SIZE];
	struct uuid u;

	if (len != sizeof(u.b))
		return json_null();
	memcpy(u.b, data, sizeof(u.b));
	return json_string(uuid_to_text(&u, text));
}

/* ---- words ---- */

const char *time_to_text(uint64_t seconds, char text[32])
{
	time_t t = seconds;
	struct tm tm;

	if (!seconds || !localtime_r(&t, &tm) || !strftime(text, 32, "%Y-%m-%d %H:%M:%S", &tm))
		strcpy(text, "-");
	return text;
}

const char *duration_to_text(uint64_t ms, char text[32])
{
	uint64_t s = ms / 1000;

	if (!s)
		snprintf(text, 32, "%u ms", (unsigned int)ms);
	else if (s < 120)
		snprintf(text, 32, "%u s", (unsigned int)s);
	else if (s < 7200)
		snprintf(text, 32, "%u min", (unsigned int)(s / 60));
	else if (s < 48 * 3600)
		snprintf(text, 32, "%u h", (unsigned int)(s / 3600));
	else
		snprintf(text, 32, "%llu d", (unsigned long long)(s / 86400));
	return text;
}

const char *fp_short(const uint8_t *data, size_t len, char text[16])
{
	if (len < 6)
		strcpy(text, "-");
	else
		snprintf(text, 16, "%02x%02x%02x%02x%02x%02x", data[0], data[1], data[2], data[3],
			 data[4], data[5]);
	return text;
}
