/* SPDX-License-Identifier: Apache-2.0 */
/* What a client says of a save while its snapshot is being filled: PARTS, or PACKED in its stead, and SUMS. */
#include "daemon/node/session_save.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The save, if its client may still say something of it before it is filled; else NULL, and it is told why not. */
static struct session_save *find_filling(struct session *s, uint64_t save, uint32_t id)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = session_save_find(s, save, 0);
    int r = 0;

    if (!sv)
        r = cairn_fail(&err, CAIRN_E_ABORTED, "save %llu is not under way any more", (unsigned long long)save);
    else if (sv->filled)
        r = cairn_fail(&err, CAIRN_E_EXISTS, "step %llu is filled already", (unsigned long long)sv->step);
    else if (sv->failed || !sv->rank_save)
        r = cairn_fail(&err, CAIRN_E_ABORTED, "step %llu was aborted before it was filled",
                       (unsigned long long)sv->step);
    if (r == 0)
        return sv;
    session_answer_error(s, id, r, &err);
    return NULL;
}

void session_on_parts(struct session *s, const struct local_parts *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = find_filling(s, m->save, m->h.id);

    if (!sv)
        return;
    uint32_t nparts = sv->layout->layout.nparts;
    if (sv->packed) {
        cairn_fail(&err, CAIRN_E_PROTOCOL, "PARTS of step %llu, which may be packed: PACKED says how they lie",
                   (unsigned long long)sv->step);
        session_reject(s, &err);
        return;
    }
    if (m->parts > nparts || m->parts < sv->in_place) {
        cairn_fail(&err, CAIRN_E_PROTOCOL, "PARTS: %u parts of step %llu are in place, after %u of %u", m->parts,
                   (unsigned long long)sv->step, sv->in_place, nparts);
        session_reject(s, &err);
        return;
    }
    struct save_image image = session_save_image(sv);
    sv->in_place = m->parts;
    session_answer_ok(s, m->h.id);
    save_in_place(sv->rank_save, &image, m->parts);
}

/* Whether it goes on where the last one ended, and every length is less than its part's. */
static int packed_check(const struct session_save *sv, const struct local_packed *m, struct cairn_error *err)
{
    const struct cairn_layout *l = &sv->layout->layout;

    if (!sv->packed)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "PACKED of step %llu, which was not begun as one that may be packed",
                          (unsigned long long)sv->step);
    if (m->first != sv->in_place || m->n > l->nparts - sv->in_place)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "PACKED: %u parts of step %llu from %u on, after %u of %u", m->n,
                          (unsigned long long)sv->step, m->first, sv->in_place, l->nparts);
    for (uint32_t i = 0; i < m->n; i++)
        if (m->len[i] && m->len[i] >= cairn_layout_part_len(l, m->first + i))
            return cairn_fail(err, CAIRN_E_PROTOCOL, "PACKED: part %u of step %llu is packed in %u bytes and has %llu",
                              m->first + i, (unsigned long long)sv->step, m->len[i],
                              (unsigned long long)cairn_layout_part_len(l, m->first + i));
    return 0;
}

void session_on_packed(struct session *s, const struct local_packed *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = find_filling(s, m->save, m->h.id);

    if (!sv)
        return;
    if (packed_check(sv, m, &err) < 0) {
        session_reject(s, &err);
        return;
    }
    struct save_image image = session_save_image(sv);
    memcpy(sv->packed + m->first, m->len, m->n * sizeof m->len[0]);
    sv->in_place += m->n;
    session_answer_ok(s, m->h.id);
    save_in_place(sv->rank_save, &image, sv->in_place);
}

/* At most 16 bytes a MiB, of memory: it is read at once. Copied first, whatever its client does to it then; a file that
 * could be changed or cut meanwhile is none that a client of ours sends. */
static int sums_read(int fd, uint32_t nparts, struct hash128 **ret_sums, struct cairn_error *err)
{
    size_t len = nparts * sizeof(struct local_sum);
    int seals = fcntl(fd, F_GET_SEALS), need = F_SEAL_SHRINK | F_SEAL_WRITE;
    _cleanup_free_ struct hash128 *sums = NULL;
    struct stat st;

    _Static_assert(sizeof(struct local_sum) == sizeof(struct hash128), "sums are taken as they come");
    if (fstat(fd, &st) < 0)
        return cairn_fail_errno(err, errno, "look at the descriptor of SUMS");
    if (seals < 0 || (seals & need) != need)
        return cairn_fail(err, CAIRN_E_PROTOCOL,
                          "SUMS: its descriptor is no memfd sealed against writing and shrinking");
    if ((uint64_t)st.st_size != len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "SUMS: %lld bytes for %u parts, %zu are expected",
                          (long long)st.st_size, nparts, len);
    sums = malloc(len ? len : 1);
    if (!sums)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the sums of %u parts", nparts);
    ssize_t n = pread(fd, sums, len, 0);
    if (n < 0)
        return cairn_fail_errno(err, errno, "read the sums of %u parts", nparts);
    if ((size_t)n != len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "SUMS: its memfd gave %zd of %zu bytes", n, len);
    *ret_sums = TAKE_PTR(sums);
    return 0;
}

void session_on_sums(struct session *s, const struct local_sums *m, int fd)
{
    _cleanup_close_ int sums_fd = fd;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = find_filling(s, m->save, m->h.id);
    int r = 0;

    if (!sv)
        return;
    if (sv->sums)
        r = cairn_fail(&err, CAIRN_E_PROTOCOL, "SUMS of step %llu come a second time", (unsigned long long)sv->step);
    if (r == 0)
        r = sums_read(sums_fd, sv->layout->layout.nparts, &sv->sums, &err);
    if (r == CAIRN_E_PROTOCOL) {
        session_reject(s, &err);
    } else if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
    } else {
        session_answer_ok(s, m->h.id);
        save_sums(sv->rank_save, sv->sums, m->seed);
    }
}
