/* SPDX-License-Identifier: Apache-2.0 */
/* An intrusive doubly linked list: the links live in the owner's struct, nothing is allocated. A link that is in no
 * list points to itself, so that removing twice is harmless. */
#ifndef CAIRN_CORE_BASE_LIST_H
#define CAIRN_CORE_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next;
    struct list *prev;
};

#define LIST_INIT(name_)   \
    {                      \
        &(name_), &(name_) \
    }

static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
    return l->next == l;
}

/* Inserts item before at; with a list's head as at, that is its tail. */
static inline void list_push_back(struct list *at, struct list *item)
{
    item->prev = at->prev;
    item->next = at;
    at->prev->next = item;
    at->prev = item;
}

static inline void list_push_front(struct list *head, struct list *item)
{
    list_push_back(head->next, item);
}

static inline void list_remove(struct list *item)
{
    item->prev->next = item->next;
    item->next->prev = item->prev;
    list_init(item);
}

#define container_of(ptr_, type_, member_) ((type_ *)(void *)((char *)(ptr_)-offsetof(type_, member_)))
#define list_for_each(it_, head_) for (struct list *it_ = (head_)->next; it_ != (head_); it_ = it_->next)
/* The current item may be removed, and no other. */
#define list_for_each_safe(it_, head_)                                              \
    for (struct list *it_ = (head_)->next, *next_##it_ = it_->next; it_ != (head_); \
         it_ = next_##it_, next_##it_ = it_->next)
/* The first item's owner; the list must not be empty. */
#define list_first(head_, type_, member_) container_of((head_)->next, type_, member_)

#endif
