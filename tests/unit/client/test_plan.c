/* SPDX-License-Identifier: Apache-2.0 */
/* A session keeps its newest plan and compares each save's tensors with it: whatever changes from one save to the next,
 * what comes back is what was saved. Catches a comparison that overlooks a field, a save that goes on with a plan after
 * a tensor that is not in it, and a plan that another save frees. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>

#include "client/plan.h"
#include "tests/unit/client/support.h"

#define N 6
#define BYTES 1000

struct tensors {
    struct cairn_tensor t[N + 1];
    uint64_t shape[N + 1][2], offset[N + 1][2], length[N + 1][2];
    char name[N + 1][16];
    char data[N + 1][BYTES];
    uint32_t n;
};

/* n slices of tensors of 20 x 25 halves: the upper 10 rows of each. */
static struct tensors *make(uint64_t seed)
{
    struct tensors *x = calloc(1, sizeof(*x));

    assert_non_null(x);
    x->n = N;
    for (uint32_t i = 0; i <= N; i++) {
        x->shape[i][0] = 20, x->shape[i][1] = 25;
        x->length[i][0] = 10, x->length[i][1] = 25;
        (void)snprintf(x->name[i], sizeof(x->name[i]), "tensor%u", i);
        fill_random(x->data[i], BYTES, seed + i);
        x->t[i] = (struct cairn_tensor){.size = sizeof(x->t[i]),
                                        .name = x->name[i],
                                        .dtype = CAIRN_F16,
                                        .ndim = 2,
                                        .shape = x->shape[i],
                                        .offset = x->offset[i],
                                        .length = x->length[i],
                                        .data = x->data[i]};
    }
    return x;
}

static void save(struct cairn_session *s, uint64_t step, const struct tensors *x)
{
    struct cairn_save *save;

    OK(begin(s, step, &save));
    for (uint32_t i = 0; i < x->n; i++)
        OK(cairn_save_add(save, &x->t[i], &err));
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    cairn_save_free(save);
}

static void check(struct cairn_session *s, uint64_t step, const struct tensors *x)
{
    struct cairn_restore *r;
    struct cairn_checkpoint_info info = {.size = sizeof(info)};

    OK(cairn_restore_open(s, step, 5000, &r, &err));
    OK(cairn_restore_info(r, &info));
    assert_int_equal(info.slices, x->n);
    for (uint32_t i = 0; i < x->n; i++) {
        char back[BYTES] = {0};
        struct cairn_tensor t = x->t[i];
        t.data = back;
        OK(cairn_restore_add(r, &t, &err));
        OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
        assert_memory_equal(back, x->data[i], x->length[i][0] * x->length[i][1] * cairn_dtype_size(t.dtype));
    }
    cairn_restore_free(r);
}

static void as_before(struct tensors *x)
{
    (void)x;
}
static void another_name(struct tensors *x)
{
    (void)snprintf(x->name[3], sizeof(x->name[3]), "tensor3.bias");
}
static void another_dtype(struct tensors *x)
{
    x->t[2].dtype = CAIRN_BF16;
}
static void another_shape(struct tensors *x)
{
    x->shape[5][0] = 40;
}
static void another_offset(struct tensors *x)
{
    x->offset[0][0] = 10;
}
static void another_length(struct tensors *x)
{
    x->length[4][0] = 9;
}
static void fewer_dimensions(struct tensors *x)
{
    x->t[1].ndim = 1; /* 10 of 20 elements */
    x->length[1][1] = 1;
}
static void one_less(struct tensors *x)
{
    x->n--;
}
static void one_more(struct tensors *x)
{
    x->n++;
}
static void two_change_places(struct tensors *x)
{
    struct cairn_tensor t = x->t[0];

    x->t[0] = x->t[1];
    x->t[1] = t;
    char data[BYTES];
    memcpy(data, x->data[0], BYTES); /* check() looks for them by index */
    memcpy(x->data[0], x->data[1], BYTES);
    memcpy(x->data[1], data, BYTES);
    x->t[0].data = x->data[0];
    x->t[1].data = x->data[1];
}

static void (*const changes[])(struct tensors *) = {
    as_before,      another_name, another_dtype,    another_shape,     another_offset,
    another_length, one_less,     fewer_dimensions, two_change_places, one_more,
};
#define NCHANGES (sizeof(changes) / sizeof(changes[0]))

static void test_changes(void **state)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    uint64_t step = 0;

    (void)state;
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    for (size_t i = 0; i < NCHANGES; i++) {
        struct tensors *plain = make(step), *changed = make(step + 50);
        changes[i](changed);
        save(s, ++step, plain);
        save(s, ++step, changed);
        check(s, step, changed);
        check(s, step - 1, plain);
        free(plain);
        free(changed);
    }
    /* Each layout was told once: the same tensors have the same name. */
    assert_int_equal(fake_count(f, LOCAL_LAYOUT), NCHANGES);
    cairn_session_close(s);
    assert_null(fake_complaint(f));
    fake_stop(f);
}

/* A tensor that cannot be added, in the middle of a plan: the error is the one it always was, and the save goes on. */
static void test_refused_in_the_middle(void **state)
{
    struct fake *f = fake_start();
    struct tensors *x = make(1);
    struct cairn_session *s;
    struct cairn_save *again;

    (void)state;
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    save(s, 1, x);
    OK(begin(s, 2, &again));
    for (uint32_t i = 0; i < x->n; i++) {
        struct cairn_tensor bad = x->t[i];
        bad.dtype = 99;
        FAILS(CAIRN_E_INVAL, cairn_save_add(again, &bad, &err));
        bad = x->t[i];
        bad.shape = NULL;
        FAILS(CAIRN_E_INVAL, cairn_save_add(again, &bad, &err));
        bad.name = NULL;
        FAILS(CAIRN_E_INVAL, cairn_save_add(again, &bad, &err));
        OK(cairn_save_add(again, &x->t[i], &err));
    }
    OK(cairn_save_seal(again, &err));
    OK(cairn_save_wait(again, CAIRN_COMMITTED, 5000, &err));
    cairn_save_free(again);
    check(s, 2, x);
    cairn_session_close(s);
    assert_null(fake_complaint(f));
    fake_stop(f);
    free(x);
}

/* Saves that are open at once hold the plan that they began with. */
static void test_plans_of_open_saves(void **state)
{
    struct fake *f = fake_start();
    struct tensors *x = make(1), *y = make(9);
    struct cairn_session *s;
    struct cairn_save *old;

    (void)state;
    another_shape(y);
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    save(s, 1, x);
    OK(begin(s, 2, &old));
    for (uint32_t i = 0; i < 3; i++)
        OK(cairn_save_add(old, &x->t[i], &err));
    save(s, 3, y); /* the session's plan is another one now */
    for (uint32_t i = 3; i < x->n; i++)
        OK(cairn_save_add(old, &x->t[i], &err));
    OK(cairn_save_seal(old, &err));
    OK(cairn_save_wait(old, CAIRN_COMMITTED, 5000, &err));
    check(s, 2, x);
    check(s, 3, y);
    cairn_save_free(old);
    cairn_session_close(s);
    assert_null(fake_complaint(f));
    fake_stop(f);
    free(x);
    free(y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_refused_in_the_middle),
        cmocka_unit_test(test_plans_of_open_saves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
