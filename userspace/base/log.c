// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/log.h"

#define LOG_LINE_MAX 2048

/* systemd names the journal's socket; stderr is it unless someone redirected stderr. */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
	       !fstat(STDERR_FILENO, &st) && st.st_dev == dev && st.st_ino == ino;
}

/* One write a line, so that lines of several threads and processes never mix. */
static void log_line(const char *priority, const char *fmt, va_list args)
{
	char line[LOG_LINE_MAX];
	size_t start = 0, len;
	ssize_t n;
	int r;

	if (stderr_is_journal())
		start = snprintf(line, sizeof(line), "%s", priority);
	r = vsnprintf(line + start, sizeof(line) - start - 1, fmt, args);
	if (r < 0)
		return;
	len = start + ((size_t)r < sizeof(line) - start - 1 ? (size_t)r : sizeof(line) - start - 2);
	/* What others sent may be part of the text: it must not forge lines or move the cursor. */
	for (size_t i = start; i < len; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[len++] = '\n';
	do
		n = write(STDERR_FILENO, line, len);
	while (n < 0 && errno == EINTR);
}

#define LOG_FUNCTION(name, priority)                                                               \
	void name(const char *fmt, ...)                                                            \
	{                                                                                          \
		va_list args;                                                                      \
                                                                                                   \
		va_start(args, fmt);                                                               \
		log_line(priority, fmt, args);                                                     \
		va_end(args);                                                                      \
	}

LOG_FUNCTION(log_error, SD_ERR)
LOG_FUNCTION(log_warn, SD_WARNING)

void log_info(const char *fmt, ...)
{
	va_list args;

	if (getenv("VMDEDUP_QUIET"))
		return;
	va_start(args, fmt);
	log_line(SD_INFO, fmt, args);
	va_end(args);
}

void log_debug(const char *fmt, ...)
{
	va_list args;

	if (!getenv("VMDEDUP_DEBUG"))
		return;
	va_start(args, fmt);
	log_line(SD_DEBUG, fmt, args);
	va_end(args);
}
