/* SPDX-License-Identifier: Apache-2.0 */
/* One idiom for cleanup: locals that own something carry an attribute and release it on every return.
 *
 *     _cleanup_free_ char *name = strdup(x);
 *     ...
 *     *ret_name = TAKE_PTR(name);
 */
#ifndef CAIRN_CORE_BASE_CLEANUP_H
#define CAIRN_CORE_BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

/* Defines cleanup function NAME for a pointer type with a destructor that takes NULL. */
#define CAIRN_DEFINE_CLEANUP(type_, free_, name_) \
    static inline void name_(type_ *p)            \
    {                                             \
        if (*p)                                   \
            free_(*p);                            \
    }

#define CAIRN_CLEANUP(name_) __attribute__((cleanup(name_)))

static inline void cairn_cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void cairn_cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

#define _cleanup_free_ CAIRN_CLEANUP(cairn_cleanup_free)
#define _cleanup_close_ CAIRN_CLEANUP(cairn_cleanup_close)

#define TAKE_PTR(p_)                  \
    ({                                \
        __typeof__(p_) taken_ = (p_); \
        (p_) = NULL;                  \
        taken_;                       \
    })

static inline int cairn_take_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}
#define TAKE_FD(fd_) cairn_take_fd(&(fd_))

#endif
