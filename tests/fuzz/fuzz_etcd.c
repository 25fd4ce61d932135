/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of an etcd, or of whatever listens at its address. */
#include "plugins/meta-etcd/meta-etcd.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

size_t fuzz_seed(uint8_t *buf, size_t room)
{
    static const char seed[] =
        "{\"header\":{\"revision\":\"12\"},\"kvs\":[{\"key\":\"cC9hL2I=\",\"mod_revision\":\"7\",\"value\":\"dmFsdWU="
        "\"},"
        "{\"key\":\"cC9h\",\"mod_revision\":\"9\"}],\"more\":true,\"succeeded\":true,\"ID\":\"77\",\"token\":\"t.1\","
        "\"result\":{\"header\":{\"revision\":\"13\"},\"TTL\":\"5\",\"ID\":\"77\",\"created\":true,\"compact_"
        "revision\":\"4\","
        "\"events\":[{\"kv\":{\"key\":\"cC9hL2I=\",\"mod_revision\":\"13\",\"value\":\"eA==\"}},{\"type\":\"DELETE\","
        "\"kv\":{\"key\":\"cC9hL2I=\",\"mod_revision\":\"14\"}}]},\"error\":\"etcdserver: requested lease not found\"}";

    if (sizeof seed - 1 > room)
        abort();
    memcpy(buf, seed, sizeof seed - 1);
    return sizeof seed - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const struct names names = {.prefix = "p/", .len = 2};
    const char *text = (const char *)data;
    struct rows rows = {.n = 0};
    struct watched watched;
    char token[ETCD_MAX_TOKEN];
    int succeeded;
    uint64_t revision;
    int64_t lease;

    if (answer_range(text, len, &names, &rows, NULL) == 0)
        for (size_t i = 0; i < rows.n; i++)
            if (!rows.kvs[i].key || !rows.kvs[i].key[0] || !rows.kvs[i].value)
                abort();
    rows_free(&rows);
    (void)answer_txn(text, len, &succeeded, &revision, NULL);
    (void)answer_grant(text, len, &lease, NULL);
    (void)answer_keep(text, len, NULL);
    (void)answer_login(text, len, token, NULL);
    (void)answer_refusal(text, len, 400, NULL);
    (void)answer_watch(text, len, &names, &watched, NULL);
    watched_free(&watched);
    return 0;
}
