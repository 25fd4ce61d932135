/* SPDX-License-Identifier: Apache-2.0 */
/* SIGTERM, SIGINT and SIGHUP as a thread's business: the program hears of them between two pieces of work, and ends
 * within a second whatever it waits for: a file system that does not answer, a daemon, an arena that is being faulted
 * in. To end at any moment is safe: what was sealed is the daemon's, what was not never was. */
#ifndef CAIRN_CLIENT_TOOL_WATCH_SIGNALS_H
#define CAIRN_CLIENT_TOOL_WATCH_SIGNALS_H

#include <cairn/cairn.h>
#include <pthread.h>
#include <stdbool.h>

struct signals {
    pthread_t thread;
    int wake[2]; /* a pipe: readable when a signal came */
    int signal;  /* atomic; 0: none came */
    bool running;
};

/* Before any other thread exists: it blocks the signals for all. */
int signals_start(struct signals *s, struct cairn_error *err);
void signals_stop(struct signals *s);
bool signals_came(const struct signals *s);

/* Tells the service manager ($NOTIFY_SOCKET), as "READY=1\nSTATUS=...". Without one nothing happens. */
void signals_notify(const char *text);

#endif
