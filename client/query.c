/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "client/session.h"
#include "core/base/error.h"
#include "core/model/name.h"

static int check_query(int kind, const char *job, struct cairn_error *err)
{
    if (kind < CAIRN_QUERY_STATUS || kind > CAIRN_QUERY_VERIFY)
        return cairn_fail(err, CAIRN_E_INVAL, "%d is no kind of query", kind);
    if (job)
        return cairn_name_check("job", job, err);
    if (kind == CAIRN_QUERY_SHOW || kind == CAIRN_QUERY_VERIFY)
        return cairn_fail(err, CAIRN_E_INVAL, "this query needs the name of a job");
    return 0;
}

/* The request's own timeout is what is left when it is sent. */
static int ask(struct attachment *a, struct local_header *h, uint32_t *timeout_ms, int64_t deadline_ns, char **ret_json,
               struct cairn_error *err)
{
    struct local_answer answer;
    struct channel_request r = {.expect = LOCAL_ANSWER, .answer = &answer, .room = sizeof(answer)};

    *timeout_ms = deadline_left_ms(deadline_ns);
    int code = channel_call(a->channel, h, -1, &r, deadline_after_daemon(deadline_ns, *timeout_ms), err);
    if (code == 0)
        code = blob_text(r.fds[0], answer.len, ret_json, err);
    channel_request_close(&r);
    return code;
}

int cairn_query(struct cairn_session *session, int kind, const char *job, uint64_t step, uint32_t timeout_ms,
                char **ret_json, struct cairn_error *err)
{
    struct local_query m = {.step = step};
    struct attachment *a = NULL;
    int64_t deadline_ns = deadline_in_ms(timeout_ms);
    int r = session_check(session, err);

    if (r == 0)
        r = check_query(kind, job, err);
    if (r < 0)
        return r;
    local_header_init(&m.h, LOCAL_QUERY, sizeof(m), 0);
    m.kind = (uint32_t)kind;
    if (job)
        memcpy(m.job, job, strlen(job) + 1);
    r = session_attach(session, deadline_ns, deadline_ns, &a, err);
    if (r == 0)
        r = ask(a, &m.h, &m.timeout_ms, deadline_ns, ret_json, err);
    session_detach(session, a);
    return r;
}

static int check_command(const char *job, const char *argument, struct cairn_error *err)
{
    if (argument && strlen(argument) >= CAIRN_COMMAND_TEXT)
        return cairn_fail(err, CAIRN_E_INVAL, "an argument of %zu bytes: at most %d are allowed", strlen(argument),
                          CAIRN_COMMAND_TEXT - 1);
    return job ? cairn_name_check("job", job, err) : 0;
}

int cairn_command(struct cairn_session *session, int kind, const char *job, uint64_t step, const char *argument,
                  uint32_t timeout_ms, char **ret_json, struct cairn_error *err)
{
    struct local_command m = {.step = step};
    struct attachment *a = NULL;
    int64_t deadline_ns = deadline_in_ms(timeout_ms);
    int r = session_check(session, err);

    if (r == 0)
        r = check_command(job, argument, err);
    if (r < 0)
        return r;
    local_header_init(&m.h, LOCAL_COMMAND, sizeof(m), 0);
    m.kind = (uint32_t)kind;
    if (job)
        memcpy(m.job, job, strlen(job) + 1);
    if (argument)
        memcpy(m.argument, argument, strlen(argument) + 1);
    r = session_attach(session, deadline_ns, deadline_ns, &a, err);
    if (r == 0)
        r = ask(a, &m.h, &m.timeout_ms, deadline_ns, ret_json, err);
    session_detach(session, a);
    return r;
}
