/* SPDX-License-Identifier: Apache-2.0 */
/* systemd's descriptor store: what a service gives to it comes back when it starts again, also after SIGKILL. Without
 * systemd, or with FileDescriptorStoreMax=0, nothing is kept and nothing comes back. */
#ifndef CAIRN_DAEMON_FDSTORE_H
#define CAIRN_DAEMON_FDSTORE_H

#include "daemon/node/node.h"

/* What came back, CLOEXEC; the array is the caller's to free. Call once, before any thread starts: it clears the
 * environment of it. */
int fdstore_take(struct node_kept_fd **ret_fds, unsigned *ret_n, struct cairn_error *err);
/* Both log what fails; nothing else follows from it. arg is not used. */
void fdstore_keep(void *arg, const char *name, int fd);
void fdstore_drop(void *arg, const char *name);

#endif
