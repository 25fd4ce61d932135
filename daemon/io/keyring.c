/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/keyring.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE ((size_t)16 << 10)

struct key {
    uint32_t id;
    size_t len;
    uint8_t bytes[KEYRING_MAX_BYTES];
};
struct keys {
    unsigned n;
    struct key key[KEYRING_MAX_KEYS];
};
struct keyring {
    char *path;
    struct keys keys;
    struct timespec changed; /* of the file that was read last, whether it could be used or not */
    ino_t inode;
    off_t size;
    bool missing; /* it is not there, and that was said */
};

/* ---- the file -------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int parse_hex(const char *s, struct key *k)
{
    size_t n = strlen(s);

    if (n % 2 || n / 2 < KEYRING_MIN_BYTES || n / 2 > KEYRING_MAX_BYTES)
        return -1;
    for (size_t i = 0; i < n; i += 2) {
        int high = hex_digit(s[i]), low = hex_digit(s[i + 1]);
        if (high < 0 || low < 0)
            return -1;
        k->bytes[k->len++] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

static int parse_line(char *line, struct keys *keys)
{
    char *save = NULL, *id = strtok_r(line, " \t\r", &save), *hex = strtok_r(NULL, " \t\r", &save), *end = NULL;
    struct key *k = &keys->key[keys->n];

    if (!id || id[0] == '#')
        return 0;
    if (!hex || strtok_r(NULL, " \t\r", &save) || keys->n == KEYRING_MAX_KEYS)
        return -1;
    *k = (struct key){.id = 0};
    errno = 0;
    unsigned long v = id[0] >= '0' && id[0] <= '9' ? strtoul(id, &end, 10) : 0;
    if (!end || *end || errno || v == 0 || v > UINT32_MAX || parse_hex(hex, k) < 0)
        return -1;
    k->id = (uint32_t)v;
    for (unsigned i = 0; i < keys->n; i++)
        if (keys->key[i].id == k->id)
            return -1;
    keys->n++;
    return 0;
}

static int parse(const char *path, char *text, struct keys *ret, struct cairn_error *err)
{
    struct keys keys = {.n = 0};
    unsigned number = 0;
    int r = 0;

    for (char *line = text, *next; r == 0 && line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        number++;
        if (parse_line(line, &keys) < 0)
            r = cairn_fail(
                err, CAIRN_E_INVAL,
                "key file %s, line %u: a number of its own and %d to %d bytes in hex are wanted, in at most %d lines",
                path, number, KEYRING_MIN_BYTES, KEYRING_MAX_BYTES, KEYRING_MAX_KEYS);
    }
    if (r == 0 && keys.n == 0)
        r = cairn_fail(err, CAIRN_E_INVAL, "key file %s has no key (cairnd --make-key FILE writes one)", path);
    if (r == 0)
        *ret = keys;
    OPENSSL_cleanse(&keys, sizeof keys);
    return r;
}

static int check_file(const char *path, const struct stat *st, struct cairn_error *err)
{
    if (!S_ISREG(st->st_mode))
        return cairn_fail(err, CAIRN_E_INVAL, "key file %s is no regular file", path);
    if (st->st_uid != geteuid() && st->st_uid != 0)
        return cairn_fail(err, CAIRN_E_DENIED, "key file %s belongs to user %u, not to this one (%u)", path, st->st_uid,
                          geteuid());
    if (st->st_mode & 077)
        return cairn_fail(err, CAIRN_E_DENIED, "key file %s may be read by others (mode %o): chmod 600 it", path,
                          st->st_mode & 0777);
    if ((size_t)st->st_size > MAX_FILE)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "key file %s has %lld bytes", path, (long long)st->st_size);
    return 0;
}

static int load(const char *path, struct keys *ret, struct stat *ret_st, struct cairn_error *err)
{
    /* Not to wait for the other end of what is no file. */
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    char text[MAX_FILE + 1];

    if (fd < 0 && errno == ELOOP)
        return cairn_fail(err, CAIRN_E_INVAL, "key file %s is a symbolic link: name the file itself", path);
    if (fd < 0 || fstat(fd, ret_st) < 0)
        return cairn_fail_errno(err, errno, "open the key file %s", path);
    int r = check_file(path, ret_st, err);
    if (r < 0)
        return r;
    ssize_t n = read(fd, text, MAX_FILE);
    if (n < 0)
        return cairn_fail_errno(err, errno, "read the key file %s", path);
    text[n] = 0;
    r = strlen(text) == (size_t)n ? parse(path, text, ret, err)
                                  : cairn_fail(err, CAIRN_E_INVAL, "key file %s is no text", path);
    OPENSSL_cleanse(text, sizeof text);
    return r;
}

static void remember(struct keyring *k, const struct stat *st)
{
    k->changed = st->st_ctim; /* a new mode or owner makes a file one that can be used, or not */
    k->inode = st->st_ino;
    k->size = st->st_size;
}

/* ---- the object ------------------------------------------------------------------------------ */

int keyring_open(const char *path, struct keyring **ret_keyring, struct cairn_error *err)
{
    struct keyring *k = calloc(1, sizeof *k);
    struct stat st;

    if (!k || !(k->path = strdup(path))) {
        free(k);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the keys");
    }
    int r = load(path, &k->keys, &st, err);
    if (r < 0) {
        keyring_free(k);
        return r;
    }
    remember(k, &st);
    *ret_keyring = k;
    return 0;
}

void keyring_free(struct keyring *k)
{
    if (!k)
        return;
    OPENSSL_cleanse(&k->keys, sizeof k->keys);
    free(k->path);
    free(k);
}

bool keyring_refresh(struct keyring *k, struct cairn_error *err)
{
    struct keys keys;
    struct stat st;

    if (lstat(k->path, &st) < 0) {
        if (!k->missing)
            cairn_fail_errno(err, errno, "look at the key file %s", k->path);
        k->missing = true;
        return false;
    }
    k->missing = false;
    if (st.st_ino == k->inode && st.st_size == k->size && st.st_ctim.tv_sec == k->changed.tv_sec &&
        st.st_ctim.tv_nsec == k->changed.tv_nsec)
        return false;
    remember(k, &st); /* a bad one is complained about once */
    if (load(k->path, &keys, &st, err) < 0)
        return false;
    remember(k, &st);
    k->keys = keys;
    OPENSSL_cleanse(&keys, sizeof keys);
    return true;
}

/* ---- signing --------------------------------------------------------------------------------- */

static int hmac(const struct key *key, const void *data, size_t len, uint8_t tag[PROOF_TAG])
{
    unsigned n = PROOF_TAG;

    if (!HMAC(EVP_sha256(), key->bytes, (int)key->len, data, len, tag, &n) || n != PROOF_TAG)
        return CAIRN_E_NOMEM;
    return 0;
}

int keyring_sign(struct keyring *k, const void *data, size_t len, uint8_t ret_tag[PROOF_TAG], uint32_t *ret_key_id)
{
    *ret_key_id = k->keys.key[0].id;
    return hmac(&k->keys.key[0], data, len, ret_tag);
}

int keyring_verify(struct keyring *k, uint32_t key_id, const void *data, size_t len, const uint8_t tag[PROOF_TAG])
{
    uint8_t right[PROOF_TAG];

    for (unsigned i = 0; i < k->keys.n; i++) {
        if (k->keys.key[i].id != key_id)
            continue;
        int r = hmac(&k->keys.key[i], data, len, right);
        return r < 0 ? r : CRYPTO_memcmp(right, tag, PROOF_TAG) == 0 ? 0 : CAIRN_E_DENIED;
    }
    return CAIRN_E_DENIED;
}

int keyring_make(const char *path, struct cairn_error *err)
{
    uint8_t key[KEYRING_MIN_BYTES];
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return errno == EEXIST ? cairn_fail(err, CAIRN_E_EXISTS, "key file %s is there already", path)
                               : cairn_fail_errno(err, errno, "create the key file %s", path);
    if (getrandom(key, sizeof key, 0) != sizeof key)
        return cairn_fail_errno(err, errno, "draw a random number");
    int r = dprintf(fd, "1 ");
    for (unsigned i = 0; i < sizeof key && r > 0; i++)
        r = dprintf(fd, "%02x", key[i]);
    OPENSSL_cleanse(key, sizeof key);
    if (r <= 0 || dprintf(fd, "\n") < 0 || fsync(fd) < 0)
        return cairn_fail_errno(err, errno, "write the key file %s", path);
    return 0;
}
