/* SPDX-License-Identifier: Apache-2.0 */
/* text.h: the text that the example learns: the licences that every Debian machine carries. */
#ifndef CLIENT_EXAMPLES_TEXT_H
#define CLIENT_EXAMPLES_TEXT_H

#include <stddef.h>
#include <stdint.h>

#define TEXT_DIRECTORY "/usr/share/common-licenses"

struct text {
    uint8_t *bytes; /* all files, one after another, sorted by name */
    size_t len;
    unsigned files;
};

/* Reads every plain file of the directory; 0, or a negative errno after a message on stderr. */
int text_read(const char *directory, size_t min_bytes, struct text *ret_text);
void text_free(struct text *text);

#endif
