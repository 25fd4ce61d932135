/* SPDX-License-Identifier: Apache-2.0 */
/* Stream capture, as far as a fence in a captured stream needs it: one stream, its work in its order, and waits for
 * events from outside. A graph's launch puts the work into a stream again. */
#include "tests/shim/internal.h"

#include <stdlib.h>
#include <string.h>

struct node {
    struct op op;           /* with an arg of its own */
    struct event *external; /* or a wait for what is recorded in it when the graph is launched */
};
struct graph {
    struct graph *next; /* in shim.graphs */
    bool alive;
    struct node *nodes;
    size_t nnodes;
};
struct capture {
    struct graph *graph;
    int mode;
    pthread_t thread;
    bool invalid;
};

static struct graph *graph_new(void)
{
    struct graph *g = calloc(1, sizeof *g);

    if (!g)
        misuse("no memory");
    g->alive = true;
    g->next = shim.graphs;
    shim.graphs = g;
    return g;
}

static void *copy_of(const void *p, size_t n)
{
    void *q = n ? malloc(n) : NULL;

    if (n && !q)
        misuse("no memory");
    return q ? memcpy(q, p, n) : NULL;
}

static void graph_add(struct graph *g, const struct node *n)
{
    struct node *more = realloc(g->nodes, (g->nnodes + 1) * sizeof *more);

    if (!more)
        misuse("no memory");
    g->nodes = more;
    g->nodes[g->nnodes++] = *n;
}

static void graph_drop(struct graph *g)
{
    for (size_t i = 0; i < g->nnodes; i++)
        free(g->nodes[i].op.arg);
    free(g->nodes);
    g->nodes = NULL;
    g->nnodes = 0;
    g->alive = false;
}

void graphs_left(struct shim_left *left)
{
    for (const struct graph *g = shim.graphs; g; g = g->next)
        left->graphs += g->alive;
}

void capture_invalidate(struct capture *c)
{
    c->invalid = true;
}

int capture_status(const struct capture *c)
{
    return !c ? 0 : c->invalid ? 2 : 1;
}

int capture_add(struct capture *c, const struct op *op, struct event *external)
{
    if (c->invalid)
        return CUDA_E_CAPTURE_INVALIDATED;
    if (external)
        external->in_graph = true;
    graph_add(c->graph, &(struct node){.op = *op, .external = external});
    return 0;
}

static bool forbids(const struct capture *c)
{
    bool mine = pthread_equal(c->thread, pthread_self());

    if (thread_capture_mode() == CUDA_CAPTURE_RELAXED || c->mode == CUDA_CAPTURE_RELAXED)
        return false;
    return mine || (c->mode == 0 && thread_capture_mode() == 0);
}

bool capture_allows(void)
{
    bool allowed = true;

    for (struct stream *s = shim.streams; s; s = s->next)
        if (s->capture && forbids(s->capture)) {
            s->capture->invalid = true;
            allowed = false;
        }
    return allowed;
}

SHIM_API int cudaStreamBeginCapture(void *stream, unsigned mode);
SHIM_API int cudaStreamEndCapture(void *stream, void **ret_graph);
SHIM_API int cudaGraphInstantiate(void **ret_exec, void *graph, unsigned long long flags);
SHIM_API int cudaGraphLaunch(void *exec, void *stream);
SHIM_API int cudaGraphDestroy(void *graph);
SHIM_API int cudaGraphExecDestroy(void *exec);

int cudaStreamBeginCapture(void *stream, unsigned mode)
{
    int code = call_begin(FN_cudaStreamBeginCapture, CALL_CONTEXT);

    if (code)
        return call_end(code);
    struct stream *s = stream_of(stream);
    if (s->capture || s == shim.devices[s->device].legacy)
        return call_end(CUDA_E_CAPTURE_UNSUPPORTED);
    s->capture = calloc(1, sizeof *s->capture);
    if (!s->capture)
        misuse("no memory");
    *s->capture = (struct capture){.graph = graph_new(), .mode = (int)mode, .thread = pthread_self()};
    return call_end(0);
}

int cudaStreamEndCapture(void *stream, void **ret_graph)
{
    int code = call_begin(FN_cudaStreamEndCapture, CALL_CONTEXT);

    if (code)
        return call_end(code);
    struct stream *s = stream_of(stream);
    struct capture *c = s->capture;
    if (!c)
        return call_end(CUDA_E_INVALID_VALUE);
    s->capture = NULL;
    *ret_graph = c->invalid ? NULL : c->graph;
    if (c->invalid)
        graph_drop(c->graph);
    code = c->invalid ? CUDA_E_CAPTURE_INVALIDATED : 0;
    free(c);
    return call_end(code);
}

static struct graph *graph_of(void *handle)
{
    for (struct graph *g = shim.graphs; g; g = g->next)
        if (g == handle) {
            if (!g->alive)
                misuse("graph %p was destroyed", handle);
            return g;
        }
    misuse("%p is no graph", handle);
}

int cudaGraphInstantiate(void **ret_exec, void *graph, unsigned long long flags)
{
    int code = call_begin(FN_cudaGraphInstantiate, CALL_CONTEXT);

    (void)flags;
    if (code)
        return call_end(code);
    const struct graph *from = graph_of(graph);
    struct graph *exec = graph_new();
    for (size_t i = 0; i < from->nnodes; i++) {
        struct node n = from->nodes[i];
        n.op.arg = copy_of(n.op.arg, n.op.arg_bytes);
        graph_add(exec, &n);
    }
    *ret_exec = exec;
    return call_end(0);
}

int cudaGraphLaunch(void *exec, void *stream)
{
    int code = call_begin(FN_cudaGraphLaunch, CALL_CONTEXT);

    if (code)
        return call_end(code);
    const struct graph *g = graph_of(exec);
    struct stream *s = stream_of(stream);
    for (size_t i = 0; i < g->nnodes && !code; i++) {
        struct op op = g->nodes[i].op;
        struct event *external = g->nodes[i].external;
        if (external && !external->alive)
            misuse("a graph waits for event %p, which was destroyed", (void *)external);
        op.wait = external ? point_ref(external->point) : NULL;
        op.arg = copy_of(op.arg, op.arg_bytes);
        code = stream_put(s, &op);
    }
    return call_end(code);
}

static int destroy(void *handle, enum fn fn)
{
    int code = call_begin(fn, CALL_CONTEXT);

    if (!code)
        graph_drop(graph_of(handle));
    return call_end(code);
}

int cudaGraphDestroy(void *graph)
{
    return destroy(graph, FN_cudaGraphDestroy);
}

int cudaGraphExecDestroy(void *exec)
{
    return destroy(exec, FN_cudaGraphExecDestroy);
}
