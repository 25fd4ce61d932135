/* SPDX-License-Identifier: Apache-2.0 */
/* Checking what came over the local socket. One row a type says its length and descriptors; what is left to check lies
 * in a small function of the type. */
#include "core/proto/local.h"

#include <stdbool.h>
#include <string.h>

#include "core/base/error.h"

/* Looks into a message whose length is right; NULL or what is wrong with it. */
typedef const char *(*check_fn)(const void *message, size_t len);

struct kind {
    const char *name;
    size_t len;   /* of the message; with more: at least */
    unsigned fds; /* that come with it */
    bool maybe;   /* the descriptors may be missing */
    bool more;    /* an array follows */
    check_fn check;
};

static bool all_zero(const void *p, size_t len)
{
    const unsigned char *b = p;

    for (size_t i = 0; i < len; i++)
        if (b[i])
            return false;
    return true;
}

#define ZERO(m_, field_) all_zero((m_)->field_, sizeof((m_)->field_))
#define TERMINATED(m_, field_) (memchr((m_)->field_, 0, sizeof((m_)->field_)) != NULL)

static const char *const unterminated = "a string is not terminated";
static const char *const not_zero = "a reserved field is not zero";

static const char *check_open(const void *message, size_t len)
{
    const struct local_open *m = message;

    (void)len;
    if (!TERMINATED(m, job) || !TERMINATED(m, start_id))
        return unterminated;
    if (!ZERO(m, pad) || !ZERO(m, reserved))
        return not_zero;
    if (m->flags & ~(uint32_t)(CAIRN_OBSERVER | CAIRN_TAKE_OVER))
        return "unknown flags";
    return NULL;
}

static const char *check_hand_back(const void *message, size_t len)
{
    const struct local_hand_back *m = message;

    (void)len;
    if (!TERMINATED(m, job) || !TERMINATED(m, start_id))
        return unterminated;
    return ZERO(m, pad) && ZERO(m, reserved) ? NULL : not_zero;
}

static const char *check_resume(const void *message, size_t len)
{
    const struct local_resume *m = message;

    (void)len;
    return m->save ? NULL : "save 0";
}

static const char *check_opened(const void *message, size_t len)
{
    const struct local_opened *m = message;

    (void)len;
    if (!TERMINATED(m, node))
        return unterminated;
    return ZERO(m, pad) && ZERO(m, reserved) ? NULL : not_zero;
}

static const char *check_layout(const void *message, size_t len)
{
    const struct local_layout *m = message;

    (void)len;
    return m->len ? NULL : "an empty layout";
}

static const char *check_begin(const void *message, size_t len)
{
    const struct local_begin *m = message;

    (void)len;
    if (m->flags & ~(uint32_t)LOCAL_BEGIN_PACKED)
        return "unknown flags";
    return ZERO(m, reserved) ? NULL : not_zero;
}

static const char *check_grant(const void *message, size_t len)
{
    const struct local_grant *m = message;

    if (m->save == 0)
        return "a grant of save 0";
    if (m->filled_word >= LOCAL_FILLED_WORDS)
        return "a filled word outside the control area";
    if (m->nruns > LOCAL_MAX_RUNS)
        return "too many runs";
    if (len != sizeof(*m) + m->nruns * sizeof(m->runs[0]))
        return "its length is not that of its runs";
    for (uint32_t i = 0; i < m->nruns; i++)
        if (m->runs[i].npages == 0 || m->runs[i].npages > UINT32_MAX - m->runs[i].first_page)
            return "an impossible run of pages";
    return NULL;
}

static const char *check_save(const void *message, size_t len)
{
    const struct local_save *m = message;

    (void)len;
    return m->save ? NULL : "save 0";
}

static const char *check_event(const void *message, size_t len)
{
    const struct local_event *m = message;

    (void)len;
    if (m->save == 0)
        return "save 0";
    if (m->code > 0)
        return "a positive code";
    if (m->code == 0 && (m->state < CAIRN_SNAPSHOT || m->state > CAIRN_COMMITTED))
        return "no such state";
    return TERMINATED(m, message) ? NULL : unterminated;
}

static const char *check_text(const void *message, size_t len)
{
    const struct local_text *m = message;

    (void)len;
    return TERMINATED(m, text) ? NULL : unterminated;
}

static const char *check_error(const void *message, size_t len)
{
    const struct local_error *m = message;

    (void)len;
    if (m->code >= 0)
        return "an error without a negative code";
    return TERMINATED(m, message) ? NULL : unterminated;
}

static const char *check_latest(const void *message, size_t len)
{
    const struct local_latest *m = message;

    (void)len;
    return m->pad == 0 ? NULL : not_zero;
}

static const char *check_restore_open(const void *message, size_t len)
{
    const struct local_restore_open *m = message;

    (void)len;
    if (!TERMINATED(m, job))
        return unterminated;
    return ZERO(m, pad) ? NULL : not_zero;
}

static const char *check_restore_opened(const void *message, size_t len)
{
    const struct local_restore_opened *m = message;

    (void)len;
    if (m->slots == 0 || m->slot_parts == 0 || m->slot_parts > 32)
        return "a window without room, or with slots of more parts than a mask has bits";
    return m->catalog_bytes ? NULL : "an empty catalog";
}

static const char *check_read(const void *message, size_t len)
{
    const struct local_read *m = message;

    (void)len;
    if (m->part_mask == 0)
        return "a read of nothing";
    return m->pad == 0 ? NULL : not_zero;
}

static const char *check_places(const void *message, size_t len)
{
    const struct local_places *m = message;

    (void)len;
    return m->pad == 0 ? NULL : not_zero;
}

static const char *check_read_done(const void *message, size_t len)
{
    const struct local_read_done *m = message;

    (void)len;
    return m->pad == 0 ? NULL : not_zero;
}

static const char *check_query(const void *message, size_t len)
{
    const struct local_query *m = message;

    (void)len;
    if (!TERMINATED(m, job))
        return unterminated;
    if (!ZERO(m, pad) || m->pad2)
        return not_zero;
    if (m->kind < CAIRN_QUERY_STATUS || m->kind > CAIRN_QUERY_VERIFY)
        return "no such kind of query";
    return NULL;
}

static const char *check_command(const void *message, size_t len)
{
    const struct local_command *m = message;

    (void)len;
    if (!TERMINATED(m, job) || !TERMINATED(m, argument))
        return unterminated;
    return ZERO(m, pad) && !m->pad2 ? NULL : not_zero;
}

static const char *check_parts(const void *message, size_t len)
{
    const struct local_parts *m = message;

    (void)len;
    if (m->save == 0)
        return "save 0";
    if (m->parts == 0)
        return "no parts";
    return m->pad == 0 ? NULL : not_zero;
}

static const char *check_packed(const void *message, size_t len)
{
    const struct local_packed *m = message;

    if (m->save == 0)
        return "save 0";
    if (m->n == 0)
        return "no parts";
    if (m->n > LOCAL_MAX_PACKED)
        return "too many parts";
    if (len != sizeof(*m) + m->n * sizeof(m->len[0]))
        return "its length is not that of its parts";
    return m->first <= UINT32_MAX - m->n ? NULL : "impossible parts";
}

static const char *check_sums(const void *message, size_t len)
{
    const struct local_sums *m = message;

    (void)len;
    return m->save ? NULL : "save 0";
}

static const struct kind requests[] = {
    [LOCAL_OPEN] = {"OPEN", sizeof(struct local_open), 0, false, false, check_open},
    [LOCAL_LAYOUT] = {"LAYOUT", sizeof(struct local_layout), 1, false, false, check_layout},
    [LOCAL_BEGIN] = {"BEGIN", sizeof(struct local_begin), 0, false, false, check_begin},
    [LOCAL_FILLED] = {"FILLED", sizeof(struct local_save), 0, false, false, check_save},
    [LOCAL_DROP] = {"DROP", sizeof(struct local_drop), 0, false, false, NULL},
    [LOCAL_WHY] = {"WHY", sizeof(struct local_save), 0, false, false, check_save},
    [LOCAL_LATEST] = {"LATEST", sizeof(struct local_latest), 0, false, false, check_latest},
    [LOCAL_RESTORE_OPEN] = {"RESTORE_OPEN", sizeof(struct local_restore_open), 0, false, false, check_restore_open},
    [LOCAL_READ] = {"READ", sizeof(struct local_read), 0, false, false, check_read},
    [LOCAL_RESTORE_CLOSE] = {"RESTORE_CLOSE", sizeof(struct local_restore_close), 0, false, false, NULL},
    [LOCAL_QUERY] = {"QUERY", sizeof(struct local_query), 0, false, false, check_query},
    [LOCAL_COMMAND] = {"COMMAND", sizeof(struct local_command), 0, false, false, check_command},
    [LOCAL_HAND_BACK] = {"HAND_BACK", sizeof(struct local_hand_back), 2, false, false, check_hand_back},
    [LOCAL_RESUME] = {"RESUME", sizeof(struct local_resume), 0, false, false, check_resume},
    [LOCAL_PLACES] = {"PLACES", sizeof(struct local_places), 0, false, false, check_places},
    [LOCAL_WAIT] = {"WAIT", sizeof(struct local_save), 0, false, false, check_save},
    [LOCAL_PARTS] = {"PARTS", sizeof(struct local_parts), 0, false, false, check_parts},
    [LOCAL_PACKED] = {"PACKED", sizeof(struct local_packed), 0, false, true, check_packed},
    [LOCAL_SUMS] = {"SUMS", sizeof(struct local_sums), 1, false, false, check_sums},
};

static const struct kind answers[] = {
    [LOCAL_ERROR - LOCAL_ERROR] = {"ERROR", sizeof(struct local_error), 0, false, false, check_error},
    [LOCAL_OK - LOCAL_ERROR] = {"OK", sizeof(struct local_ok), 0, false, false, NULL},
    [LOCAL_OPENED - LOCAL_ERROR] = {"OPENED", sizeof(struct local_opened), 2, true, false, check_opened},
    [LOCAL_GRANT - LOCAL_ERROR] = {"GRANT", sizeof(struct local_grant), 0, false, true, check_grant},
    [LOCAL_EVENT - LOCAL_ERROR] = {"EVENT", sizeof(struct local_event), 0, false, false, check_event},
    [LOCAL_TEXT - LOCAL_ERROR] = {"TEXT", sizeof(struct local_text), 0, false, false, check_text},
    [LOCAL_LATEST_IS - LOCAL_ERROR] = {"LATEST_IS", sizeof(struct local_latest_is), 0, false, false, NULL},
    [LOCAL_RESTORE_OPENED -
        LOCAL_ERROR] = {"RESTORE_OPENED", sizeof(struct local_restore_opened), 2, false, false, check_restore_opened},
    [LOCAL_READ_DONE - LOCAL_ERROR] = {"READ_DONE", sizeof(struct local_read_done), 0, false, false, check_read_done},
    [LOCAL_ANSWER - LOCAL_ERROR] = {"ANSWER", sizeof(struct local_answer), 1, false, false, NULL},
    [LOCAL_PLACES_ARE - LOCAL_ERROR] = {"PLACES_ARE", sizeof(struct local_places_are), 1, false, false, NULL},
};

#define COUNT(a_) (sizeof(a_) / sizeof((a_)[0]))

static const struct kind *kind_of(unsigned type)
{
    if (type < COUNT(requests) && requests[type].name)
        return &requests[type];
    if (type >= LOCAL_ERROR && type - LOCAL_ERROR < COUNT(answers) && answers[type - LOCAL_ERROR].name)
        return &answers[type - LOCAL_ERROR];
    return NULL;
}

static int check_header(const struct local_header *h, size_t len, struct cairn_error *err)
{
    if (h->magic != LOCAL_MAGIC)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "message with magic %08x, expected %08x", h->magic, LOCAL_MAGIC);
    if (h->version != LOCAL_VERSION)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "message of version %u, this side speaks %u", h->version,
                          LOCAL_VERSION);
    if (h->len != len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "message of %zu bytes says it has %u", len, h->len);
    return 0;
}

int local_check(const void *message, size_t len, unsigned nfds, struct cairn_error *err)
{
    const struct local_header *h = message;

    if (len < sizeof(*h) || len > LOCAL_MAX_MESSAGE)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "message of %zu bytes", len);
    int r = check_header(h, len, err);
    if (r < 0)
        return r;
    const struct kind *k = kind_of(h->type);
    if (!k)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "message of unknown type %u", h->type);
    if (k->more ? len < k->len : len != k->len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%s of %zu bytes, expected %zu", k->name, len, k->len);
    if (nfds != k->fds && !(k->maybe && nfds == 0))
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%s with %u descriptors, expected %u", k->name, nfds, k->fds);
    /* A daemon that could not read a request's id says why it hangs up in an ERROR with id 0. */
    if ((h->type == LOCAL_EVENT) != (h->id == 0) && h->type != LOCAL_ERROR)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%s with id %u", k->name, h->id);
    const char *wrong = k->check ? k->check(message, len) : NULL;
    if (wrong)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%s: %s", k->name, wrong);
    return h->type;
}

bool local_is_unknown_request(const void *message, size_t len)
{
    const struct local_header *h = message;

    return len >= sizeof(*h) && len <= LOCAL_MAX_MESSAGE && check_header(h, len, NULL) == 0 && h->id != 0 &&
           h->type > 0 && h->type < LOCAL_ERROR && !kind_of(h->type);
}

void local_header_init(struct local_header *h, int type, size_t len, uint32_t id)
{
    *h = (struct local_header){
        .magic = LOCAL_MAGIC, .version = LOCAL_VERSION, .type = (uint16_t)type, .len = (uint32_t)len, .id = id};
}

const char *local_type_name(int type)
{
    const struct kind *k = type >= 0 ? kind_of((unsigned)type) : NULL;

    return k ? k->name : "unknown";
}
