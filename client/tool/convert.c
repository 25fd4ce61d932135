/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/convert.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Not -m: the working directory is no place to import from, and what is missing deserves a better word than a
 * traceback. The first argument is where the package lies, or nothing. */
#define PROGRAM                                                                                                    \
    "import sys\n"                                                                                                 \
    "beside = sys.argv.pop(1)\n"                                                                                   \
    "sys.path[:] = [p for p in [beside] + sys.path if p]\n"                                                        \
    "try:\n"                                                                                                       \
    "    from cairn.convert.__main__ import main\n"                                                                \
    "except ImportError as error:\n"                                                                               \
    "    why = (f'{sys.executable} cannot import what conversion needs ({error}): pip install ./client/python '\n" \
    "           'of the source, or set PYTHONPATH to the folder python of an unpacked bundle, or name an '\n"      \
    "           'interpreter that has the package in CAIRN_PYTHON; formats but safetensors need torch too')\n"     \
    "    print('cairn: ' + why, file=sys.stderr)\n"                                                                \
    "    if '--json' in sys.argv:\n"                                                                               \
    "        import json\n"                                                                                        \
    "        print(json.dumps({'v': 1, 'error': {'code': 'unsupported', 'message': why}}))\n"                      \
    "    sys.exit(1)\n"                                                                                            \
    "sys.exit(main(sys.argv[1:]))\n"

#define MAX_ARGUMENTS 32
struct arguments {
    char *v[MAX_ARGUMENTS];
    unsigned n;
    bool failed;
};

static void add(struct arguments *a, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(struct arguments *a, const char *format, ...)
{
    va_list args;
    char *text = NULL;

    va_start(args, format);
    if (a->n + 1 >= MAX_ARGUMENTS || vasprintf(&text, format, args) < 0)
        a->failed = true;
    else
        a->v[a->n++] = text;
    va_end(args);
}

/* --name=value in one word: a value may begin with a dash. */
static void add_text(struct arguments *a, const char *name, const char *value)
{
    if (value)
        add(a, "--%s=%s", name, value);
}

static void add_flag(struct arguments *a, const char *name, bool set)
{
    if (set)
        add(a, "--%s", name);
}

/* In an unpacked bundle the package lies in python, where this program is in bin: that one knows its libcairn. */
static void add_beside(struct arguments *a)
{
    char program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    _cleanup_free_ char *main = NULL;

    program[n > 0 ? n : 0] = 0;
    char *name = strrchr(program, '/');
    if (name)
        *name = 0;
    if (name && asprintf(&main, "%s/../python/cairn/convert/__main__.py", program) < 0)
        main = NULL;
    if (main && access(main, R_OK) == 0)
        add(a, "%s/../python", program);
    else
        add(a, "%s", "");
}

static void begin(struct arguments *a, const struct tool *t, const char *verb)
{
    const char *python = getenv("CAIRN_PYTHON");

    add(a, "%s", python && *python ? python : "python3");
    add(a, "-c");
    add(a, "%s", PROGRAM);
    add_beside(a);
    add(a, "%s", verb);
    add_text(a, "socket", t->socket);
    if (t->timeout_ms)
        add(a, "--timeout=%u", t->timeout_ms / 1000);
    add_flag(a, "json", t->json);
}

static int become(struct arguments *a, const struct tool *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    a->v[a->n] = NULL;
    if (!a->failed) {
        execvp(a->v[0], a->v);
        cairn_fail(&err, CAIRN_E_UNSUPPORTED,
                   "start %s, which this format needs: %s (CAIRN_PYTHON names the interpreter)", a->v[0],
                   strerror(errno));
    } else {
        cairn_fail(&err, CAIRN_E_NOMEM, "make a command line");
    }
    for (unsigned i = 0; i < a->n; i++)
        free(a->v[i]);
    return tool_fail(t, "convert", &err);
}

int convert_export(const struct tool *t, const char *format, uint64_t step)
{
    struct arguments a = {0};

    begin(&a, t, "export");
    add_text(&a, "job", t->argv[1]);
    if (step != CAIRN_LATEST)
        add(&a, "--step=%" PRIu64, step);
    add_text(&a, "to", t->to);
    add_text(&a, "format", format);
    add_text(&a, "only", t->only);
    add_text(&a, "strip", t->strip);
    if (t->rank >= 0)
        add(&a, "--rank=%" PRId64, t->rank);
    add_flag(&a, "merge", t->merge);
    add_flag(&a, "force", t->force);
    return become(&a, t);
}

int cmd_import(struct tool *t)
{
    struct arguments a = {0};

    if (t->argc != 3)
        return EXIT_USAGE;
    begin(&a, t, "import");
    add_text(&a, "path", t->argv[1]);
    add_text(&a, "job", t->argv[2]);
    add_text(&a, "format", t->format);
    add_text(&a, "step", t->step);
    if (t->arena_bytes)
        add(&a, "--arena=%" PRIu64, t->arena_bytes);
    add_flag(&a, "unchecked", t->unchecked);
    return become(&a, t);
}
