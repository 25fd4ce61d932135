/* SPDX-License-Identifier: Apache-2.0 */
#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define TEXT_MAX (16u << 20) /* enough for this model; a larger directory is cut off here */

static int append_file(struct text *text, const char *directory, const char *name)
{
    char path[4096];
    struct stat st;
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 || text->n + (size_t)st.st_size > TEXT_MAX)
        return 0;
    uint8_t *more = realloc(text->bytes, text->n + (size_t)st.st_size);
    if (!more)
        return -1;
    text->bytes = more;
    f = fopen(path, "rb");
    if (!f)
        return 0;
    text->n += fread(text->bytes + text->n, 1, (size_t)st.st_size, f);
    fclose(f);
    return 0;
}

/* By bytes, not by the locale's rules: the order is part of what is learned. */
static int by_name(const struct dirent **a, const struct dirent **b)
{
    const unsigned char *x = (const unsigned char *)(*a)->d_name, *y = (const unsigned char *)(*b)->d_name;

    while (*x && *x == *y)
        x++, y++;
    return *x - *y;
}

int text_read(struct text *text, const char *directory)
{
    struct dirent **entries;
    int n = scandir(directory, &entries, NULL, by_name), r = 0;

    *text = (struct text){0};
    if (n < 0)
        return -1;
    for (int i = 0; i < n; i++) {
        if (r == 0)
            r = append_file(text, directory, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    if (r == 0 && text->n == 0) {
        errno = ENODATA;
        r = -1;
    }
    if (r < 0)
        text_free(text);
    return r;
}

void text_free(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}
