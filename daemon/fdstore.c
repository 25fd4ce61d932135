/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/fdstore.h"

#include "core/base/error.h"
#include "daemon/io/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>

int fdstore_take(struct node_kept_fd **ret_fds, unsigned *ret_n, struct cairn_error *err)
{
    char **names = NULL;
    int n = sd_listen_fds_with_names(1, &names);

    if (n < 0)
        return cairn_fail_errno(err, -n, "take descriptors from the service manager");
    struct node_kept_fd *fds = calloc(n ? (size_t)n : 1, sizeof *fds);
    for (int i = 0; i < n; i++) {
        if (fds) {
            fds[i].fd = SD_LISTEN_FDS_START + i;
            snprintf(fds[i].name, sizeof fds[i].name, "%s", names[i]);
        }
        free(names[i]);
    }
    free(names);
    if (!fds)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %d descriptors", n);
    *ret_fds = fds;
    *ret_n = (unsigned)n;
    return 0;
}

void fdstore_keep(void *arg, const char *name, int fd)
{
    char text[128];

    (void)arg;
    /* No polling: a memory file never hangs up. */
    snprintf(text, sizeof text, "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
    int r = sd_pid_notify_with_fds(0, 0, text, &fd, 1);
    if (r < 0)
        log_line(LOG_WARNING, "%s could not be given to the service manager: %s", name, strerror(-r));
}

void fdstore_drop(void *arg, const char *name)
{
    char text[128];

    (void)arg;
    snprintf(text, sizeof text, "FDSTOREREMOVE=1\nFDNAME=%s", name);
    int r = sd_notify(0, text);
    if (r < 0)
        log_line(LOG_WARNING, "%s could not be taken from the service manager: %s", name, strerror(-r));
}
