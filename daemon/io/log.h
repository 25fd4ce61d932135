/* SPDX-License-Identifier: Apache-2.0 */
/* One line per event on stderr, with systemd's <priority> prefix when the journal reads it. Only what decides logs,
 * once. */
#ifndef CAIRN_DAEMON_IO_LOG_H
#define CAIRN_DAEMON_IO_LOG_H

enum log_level { LOG_ERROR = 3, LOG_WARNING = 4, LOG_NOTICE = 5, LOG_DETAIL = 7 };
void log_setup(enum log_level max, const char *name);
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
