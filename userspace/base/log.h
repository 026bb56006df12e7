/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages of daemons to stderr, with sd-daemon's "<N>" priorities under systemd. Thread-safe. */
#ifndef VMDEDUP_BASE_LOG_H
#define VMDEDUP_BASE_LOG_H

void log_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* not with VMDEDUP_QUIET */
void log_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* VMDEDUP_DEBUG set */

#endif
