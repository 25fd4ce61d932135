/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/watch_signals.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define GRACE_MS 800

static void fill_set(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGUSR1); /* from signals_stop */
}

static void *wait_for_signal(void *arg)
{
    struct signals *s = arg;
    const struct timespec grace = {.tv_nsec = GRACE_MS * 1000000L};
    sigset_t set;
    int got;

    fill_set(&set);
    do { /* somebody else's SIGUSR1 means nothing */
        if (sigwait(&set, &got) != 0 || !__atomic_load_n(&s->running, __ATOMIC_ACQUIRE))
            return NULL;
    } while (got == SIGUSR1);
    __atomic_store_n(&s->signal, got, __ATOMIC_RELEASE);
    if (write(s->wake[1], "s", 1) < 0)
        _exit(0);
    (void)sigtimedwait(&set, NULL, &grace); /* a second signal, the end of the work, or the end of the patience */
    if (__atomic_load_n(&s->running, __ATOMIC_ACQUIRE))
        _exit(0);
    return NULL;
}

int signals_start(struct signals *s, struct cairn_error *err)
{
    sigset_t set;

    *s = (struct signals){.wake = {-1, -1}};
    fill_set(&set);
    if (pipe2(s->wake, O_CLOEXEC | O_NONBLOCK) < 0)
        return cairn_fail_errno(err, errno, "make a pipe");
    signal(SIGPIPE, SIG_IGN); /* a log that nobody reads any more ends nothing */
    int e = pthread_sigmask(SIG_BLOCK, &set, NULL);
    s->running = e == 0;
    if (e == 0)
        e = pthread_create(&s->thread, NULL, wait_for_signal, s);
    if (e == 0)
        return 0;
    close(s->wake[0]);
    close(s->wake[1]);
    s->running = false;
    return cairn_fail_errno(err, e, "start a thread for signals");
}

void signals_stop(struct signals *s)
{
    if (!s->running)
        return;
    __atomic_store_n(&s->running, false, __ATOMIC_RELEASE);
    pthread_kill(s->thread, SIGUSR1);
    pthread_join(s->thread, NULL);
    close(s->wake[0]);
    close(s->wake[1]);
}

bool signals_came(const struct signals *s)
{
    return __atomic_load_n(&s->signal, __ATOMIC_ACQUIRE) != 0;
}

void signals_notify(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};

    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof to.sun_path)
        return;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    memcpy(to.sun_path, path, strlen(path));
    if (path[0] == '@') /* an abstract name */
        to.sun_path[0] = '\0';
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (fd >= 0)
        (void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT, (const struct sockaddr *)&to, len);
}
