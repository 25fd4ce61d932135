/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a key file that others can read, a proof that is good for the other side or another connection, a rotation
 * that locks daemons out, a broken new file that takes the old keys away. */
#include "daemon/io/keyring.h"

#include "core/base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define HEX_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HEX_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static char dir[32], path[64];
static struct cairn_error err;

static void write_keys(const char *text, mode_t mode)
{
    char other[80];

    snprintf(other, sizeof other, "%s.new", path);
    FILE *f = fopen(other, "w");
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(other, mode), 0);
    assert_int_equal(rename(other, path), 0);
}

static struct keyring *opened(const char *text)
{
    struct keyring *k = NULL;

    write_keys(text, 0600);
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    if (keyring_open(path, &k, &err) < 0)
        fail_msg("%s", err.message);
    return k;
}

static void refused(const char *text, mode_t mode, int code)
{
    struct keyring *k = NULL;

    write_keys(text, mode);
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    assert_int_equal(keyring_open(path, &k, &err), code);
    assert_null(k);
    assert_non_null(strstr(err.message, path));
}

static void bad_files_are_refused(void **state)
{
    struct keyring *k = NULL;

    (void)state;
    refused("1 " HEX_A "\n", 0640, CAIRN_E_DENIED);
    refused("1 " HEX_A "\n", 0604, CAIRN_E_DENIED);
    refused("", 0600, CAIRN_E_INVAL);
    refused("# nothing\n", 0600, CAIRN_E_INVAL);
    refused("1 aabb\n", 0600, CAIRN_E_INVAL);
    refused("0 " HEX_A "\n", 0600, CAIRN_E_INVAL);
    refused("x " HEX_A "\n", 0600, CAIRN_E_INVAL);
    refused("1 " HEX_A " more\n", 0600, CAIRN_E_INVAL);
    refused("1 " HEX_A "\n1 " HEX_B "\n", 0600, CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "line 2"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/dev/null", path), 0);
    assert_int_equal(keyring_open(path, &k, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "symbolic link"));
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0); /* catches: an open that waits for a writer */
    assert_int_equal(keyring_open(path, &k, &err), CAIRN_E_INVAL);
    unlink(path);
}

static void only_the_key_verifies(void **state)
{
    struct keyring *a = opened("# the one\n7 " HEX_A "\n"), *b = opened("7 " HEX_B "\n");
    uint8_t tag[PROOF_TAG];
    uint32_t id = 0;

    (void)state;
    assert_int_equal(keyring_sign(a, "text", 4, tag, &id), 0);
    assert_int_equal(id, 7);
    assert_int_equal(keyring_verify(a, 7, "text", 4, tag), 0);
    assert_int_equal(keyring_verify(a, 7, "texu", 4, tag), CAIRN_E_DENIED);
    assert_int_equal(keyring_verify(a, 8, "text", 4, tag), CAIRN_E_DENIED);
    assert_int_equal(keyring_verify(b, 7, "text", 4, tag), CAIRN_E_DENIED);
    tag[31] ^= 1;
    assert_int_equal(keyring_verify(a, 7, "text", 4, tag), CAIRN_E_DENIED);
    keyring_free(a);
    keyring_free(b);
}

static void keys_rotate(void **state)
{
    struct keyring *k = opened("1 " HEX_A "\n");
    uint8_t old[PROOF_TAG], tag[PROOF_TAG];
    uint32_t id;

    (void)state;
    assert_int_equal(keyring_sign(k, "text", 4, old, &id), 0);
    assert_false(keyring_refresh(k, &err));
    write_keys("1 " HEX_A "\n2 " HEX_B "\n", 0600);
    assert_true(keyring_refresh(k, &err));
    assert_int_equal(keyring_sign(k, "text", 4, tag, &id), 0);
    assert_int_equal(id, 1); /* the first signs */
    write_keys("2 " HEX_B "\n1 " HEX_A "\n", 0600);
    assert_true(keyring_refresh(k, &err));
    assert_int_equal(keyring_sign(k, "text", 4, tag, &id), 0);
    assert_int_equal(id, 2);
    assert_int_equal(keyring_verify(k, 1, "text", 4, old), 0);
    write_keys("nonsense\n", 0600);
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    assert_false(keyring_refresh(k, &err));
    assert_true(err.message[0]);
    assert_int_equal(keyring_verify(k, 1, "text", 4, old), 0);
    write_keys("2 " HEX_B "\n", 0600);
    assert_true(keyring_refresh(k, &err));
    assert_int_equal(keyring_verify(k, 1, "text", 4, old), CAIRN_E_DENIED);
    keyring_free(k);
}

/* What the error asks for, chmod, changes neither time nor size of the contents. */
static void a_mended_mode_is_noticed(void **state)
{
    struct keyring *k = opened("1 " HEX_A "\n");
    uint8_t tag[PROOF_TAG];
    uint32_t id;

    (void)state;
    write_keys("2 " HEX_B "\n", 0644);
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    assert_false(keyring_refresh(k, &err));
    assert_non_null(strstr(err.message, "chmod 600"));
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    assert_false(keyring_refresh(k, &err));
    assert_string_equal(err.message, ""); /* said once */
    assert_int_equal(chmod(path, 0600), 0);
    assert_true(keyring_refresh(k, &err));
    assert_int_equal(keyring_sign(k, "text", 4, tag, &id), 0);
    assert_int_equal(id, 2);
    keyring_free(k);
}

static void a_lost_file_keeps_the_keys(void **state)
{
    struct keyring *k = opened("1 " HEX_A "\n");
    uint8_t tag[PROOF_TAG];
    uint32_t id;

    (void)state;
    assert_int_equal(unlink(path), 0);
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    assert_false(keyring_refresh(k, &err));
    assert_non_null(strstr(err.message, path));
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    assert_false(keyring_refresh(k, &err));
    assert_string_equal(err.message, ""); /* said once */
    assert_int_equal(keyring_sign(k, "text", 4, tag, &id), 0);
    write_keys("2 " HEX_B "\n", 0600);
    assert_true(keyring_refresh(k, &err));
    keyring_free(k);
}

/* Another program's HMAC-SHA256: python3 -c 'import hmac; print(hmac.new(b"\xaa" * 32, b"text", "sha256").hexdigest())'
 */
static void a_tag_is_hmac_sha256(void **state)
{
    static const char right[] = "da351d5d395a837bf3ed6aa5c9ed775922e4bd6552de7813c4e33505863809e4";
    struct keyring *k = opened("1 " HEX_A "\n");
    char text[2 * PROOF_TAG + 1];
    uint8_t tag[PROOF_TAG];
    uint32_t id;

    (void)state;
    assert_int_equal(keyring_sign(k, "text", 4, tag, &id), 0);
    for (unsigned i = 0; i < PROOF_TAG; i++)
        snprintf(text + 2 * i, 3, "%02x", tag[i]);
    assert_string_equal(text, right);
    keyring_free(k);
}

static void a_made_key_works(void **state)
{
    struct keyring *k = NULL;
    struct stat st;

    (void)state;
    unlink(path);
    assert_int_equal(keyring_make(path, &err), 0);
    assert_int_equal(keyring_make(path, &err), CAIRN_E_EXISTS);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(keyring_open(path, &k, &err), 0);
    keyring_free(k);
}

static void proofs_are_good_for_one_thing(void **state)
{
    struct proof p = {.node = "n1", .node_start = 1, .peer = "p1", .peer_start = 2};
    p.node_address = (struct proof_address){.bytes = {1, 2}, .len = 2};
    p.peer_address = (struct proof_address){.bytes = {3, 4}, .len = 2};
    struct bytes first = {0}, other = {0};

    (void)state;
#define DIFFERS(change_)                                                                       \
    do {                                                                                       \
        struct proof was = p;                                                                  \
        change_;                                                                               \
        assert_int_equal(proof_bytes(&p, PROOF_NODE, &other), 0);                              \
        assert_true(other.len != first.len || memcmp(first.data, other.data, first.len) != 0); \
        bytes_free(&other);                                                                    \
        p = was;                                                                               \
    } while (0)
    assert_int_equal(proof_bytes(&p, PROOF_PEER, &first), 0);
    DIFFERS((void)0); /* the other role */
    bytes_free(&first);
    assert_int_equal(proof_bytes(&p, PROOF_NODE, &first), 0);
    DIFFERS(p.node_start = 9);
    DIFFERS(p.peer_start = 9);
    DIFFERS(p.node_nonce[0] = 9);
    DIFFERS(p.peer_nonce[15] = 9);
    DIFFERS((strcpy(p.node, "n1p"), strcpy(p.peer, "1")));
    /* Catches: a handshake that is passed on by whoever has its own address where answers go. */
    DIFFERS(p.node_address.bytes[1] = 9);
    DIFFERS(p.peer_address.bytes[1] = 9);
    DIFFERS((p.node_address.len = 0, p.peer_address.len = 4));
    bytes_free(&first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(only_the_key_verifies),
        cmocka_unit_test(keys_rotate),
        cmocka_unit_test(a_mended_mode_is_noticed),
        cmocka_unit_test(a_lost_file_keeps_the_keys),
        cmocka_unit_test(a_tag_is_hmac_sha256),
        cmocka_unit_test(a_made_key_works),
        cmocka_unit_test(proofs_are_good_for_one_thing),
    };

    strcpy(dir, "/tmp/cairn-keys-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    snprintf(path, sizeof path, "%s/key", dir);
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(dir);
    return r;
}
