/* SPDX-License-Identifier: Apache-2.0 */
#include "client/examples/text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_BYTES ((size_t)64 << 20) /* of all files: a directory of something else is not read into memory */

/* Appends one file; anything that is not a plain file (GPL is a link to GPL-3) is passed over. */
static int append(struct text *text, int dir, const char *name)
{
    struct stat st;
    int rc = 0, fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return errno == ELOOP ? 0 : -errno;
    if (fstat(fd, &st) < 0)
        rc = -errno;
    else if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > MAX_BYTES - text->len)
        rc = -EFBIG;
    else if (S_ISREG(st.st_mode) && st.st_size > 0) {
        uint8_t *more = realloc(text->bytes, text->len + (size_t)st.st_size);
        ssize_t got = more ? read(fd, more + text->len, (size_t)st.st_size) : -1;
        text->bytes = more ? more : text->bytes;
        if (got != st.st_size)
            rc = more ? -EIO : -ENOMEM;
        else
            text->len += (size_t)got;
        text->files += rc == 0;
    }
    close(fd);
    return rc;
}

/* By bytes, whatever the locale: every rank and every run must see the same text. */
static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

int text_read(const char *directory, size_t min_bytes, struct text *ret_text)
{
    struct text text = {0};
    struct dirent **names = NULL;
    int n = 0, rc = 0, dir = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (dir < 0 || (n = scandir(directory, &names, NULL, by_name)) < 0) {
        rc = -errno;
        fprintf(stderr, "train: no text to learn: cannot read %s: %s\n", directory, strerror(-rc));
    }
    for (int i = 0; i < n; i++) {
        if (rc == 0 && names[i]->d_name[0] != '.' && (rc = append(&text, dir, names[i]->d_name)) < 0)
            fprintf(stderr, "train: cannot read %s/%s: %s\n", directory, names[i]->d_name, strerror(-rc));
        free(names[i]);
    }
    free(names);
    if (dir >= 0)
        close(dir);
    if (rc == 0 && text.len < min_bytes) {
        rc = -ENOENT;
        fprintf(stderr, "train: no text to learn: %s holds %u plain files with %zu bytes, at least %zu are needed\n",
                directory, text.files, text.len, min_bytes);
    }
    if (rc < 0)
        free(text.bytes);
    else
        *ret_text = text;
    return rc;
}

void text_free(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}
