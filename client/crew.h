/* SPDX-License-Identifier: Apache-2.0 */
/* Threads for one piece of work, made for it and gone after it: what a trainer allowed, and nothing that stays. */
#ifndef CAIRN_CLIENT_CREW_H
#define CAIRN_CLIENT_CREW_H

#define CREW_MAX 64

/* Runs work(arg) in the calling thread and in up to threads - 1 others, which share it among themselves, and returns
 * when all have ended. The others take no signals. When none can be made the calling thread does it all. */
void crew_run(void *(*work)(void *arg), void *arg, unsigned threads);

#endif
