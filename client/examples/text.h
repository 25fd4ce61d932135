/* SPDX-License-Identifier: Apache-2.0 */
/* Something to read: the text files of a directory, one after the other in the order of their names. */
#ifndef CAIRN_EXAMPLES_TEXT_H
#define CAIRN_EXAMPLES_TEXT_H

#include <stddef.h>
#include <stdint.h>

struct text {
    uint8_t *bytes;
    size_t n;
};

/* Symbolic links are left out: they would only repeat. Returns 0, or -1 with errno when nothing can be read. */
int text_read(struct text *text, const char *directory);
void text_free(struct text *text);

#endif
