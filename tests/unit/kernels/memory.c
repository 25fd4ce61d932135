/* SPDX-License-Identifier: Apache-2.0 */
#include "launch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>

#include <cmocka.h>

#define PAGE ((size_t)4096)

uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

void fill_random(void *p, size_t len, uint64_t seed)
{
    uint8_t *to = p;

    seed = seed * 2 + 1;
    for (size_t i = 0; i < len; i++)
        to[i] = (uint8_t)(next_random(&seed) >> 24);
}

static size_t whole_pages(size_t len)
{
    return (len + PAGE - 1) / PAGE * PAGE;
}

uint8_t *edge_alloc(size_t len)
{
    size_t whole = whole_pages(len);
    uint8_t *p = mmap(NULL, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(p != MAP_FAILED);
    assert_int_equal(mprotect(p + whole, PAGE, PROT_NONE), 0);
    return p + whole - len;
}

void edge_free(uint8_t *p, size_t len)
{
    size_t whole = whole_pages(len);

    assert_int_equal(munmap(p + len - whole, whole + PAGE), 0);
}
