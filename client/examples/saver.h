/* SPDX-License-Identifier: Apache-2.0 */
/* Saves and resumes a trainer through libcairn: the part of the example to copy from. */
#ifndef CAIRN_EXAMPLES_SAVER_H
#define CAIRN_EXAMPLES_SAVER_H

#include "trainer.h"

struct saver;

/* Opens this rank's session. 0, or -1 after saying why. */
int saver_open(struct trainer *t, struct saver **ret);
/* Reads the step that all ranks resume from; leaves the trainer as it is when the job has no checkpoint yet. */
int saver_resume(struct saver *s);
/* Saves the current step. A save that fails warns, and training goes on; -1 only when a newer start of the job has
 * taken over. */
int saver_save(struct saver *s);
/* Looks what became of earlier saves, without waiting. */
void saver_poll(struct saver *s);
/* Waits for the saves that are still on their way. NULL is allowed. */
void saver_close(struct saver *s);

#endif
