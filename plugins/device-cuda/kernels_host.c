/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels, from the host's side. Everything works without them, more slowly, so whatever is in their way is no
 * error but a line of describe(). */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"
#include "plugins/device-cuda/kernels/image.h"

#include <string.h>

static const char *const names[KERNELS] = {GPU_GATHER, GPU_SCATTER, GPU_SUMS, GPU_PUT, GPU_PACK};

int kernels_launch(struct cairn_device *d, enum kernel kernel, uint32_t blocks, uint32_t threads, void *args,
                   cuda_stream stream, struct cairn_error *err)
{
    void *list[] = {args};
    cuda_dim3 grid = {blocks, 1, 1}, block = {threads, 1, 1};
    char what[64];

    if (blocks == 0)
        return 0;
    cuda_error e = d->cuda.launch(d->kernels.kernel[kernel], grid, block, list, 0, stream);
    if (e == CUDA_OK)
        return 0;
    snprintf(what, sizeof what, "launch kernel %s", names[kernel]);
    return device_fail(d, err, e, what);
}

/* Code is loaded by the first launch of each kernel, which may wait for whatever the device does then: so it is
 * launched now, with nothing to do. */
static int load_code(struct cairn_device *d, cuda_stream stream, struct cairn_error *err)
{
    static const uint32_t threads[KERNELS] = {GPU_GATHER_THREADS, GPU_SCATTER_THREADS, GPU_SUMS_THREADS,
                                              GPU_PUT_THREADS, GPU_PACK_THREADS};
    union {
        struct gpu_gather gather;
        struct gpu_scatter scatter;
        struct gpu_sums sums;
        struct gpu_put put;
        struct gpu_pack pack;
    } nothing;
    int r = 0;

    memset(&nothing, 0, sizeof nothing);
    for (int i = 0; i < KERNELS && r == 0; i++)
        r = kernels_launch(d, (enum kernel)i, 1, threads[i], &nothing, stream, err);
    return r;
}

/* Code that the device cannot run may be found out by the first launch only. */
static int try_all(struct cairn_device *d, struct cairn_error *err)
{
    struct gpu_gather gather = {.len = 16};
    cuda_stream stream = d->lanes[0].stream;
    int r;

    cuda_error e = d->cuda.malloc(&gather.block, gather.len);
    if (e)
        return device_fail(d, err, e, "take memory");
    r = load_code(d, stream, err);
    if (r == 0)
        r = kernels_launch(d, KERNEL_GATHER, gpu_gather_blocks(gather.len), GPU_GATHER_THREADS, &gather, stream, err);
    if (r == 0 && (e = d->cuda.stream_sync(stream)) != CUDA_OK)
        r = device_fail(d, err, e, "run a kernel");
    (void)d->cuda.free(gather.block);
    return r;
}

static int load(struct cairn_device *d, const void *image, struct cairn_error *err)
{
    struct kernels *k = &d->kernels;
    cuda_error e = d->cuda.library_load(&k->library, image, NULL, NULL, 0, NULL, NULL, 0);

    if (e) {
        k->library = NULL;
        return device_fail(d, err, e, "load the kernels");
    }
    for (int i = 0; i < KERNELS && !e; i++)
        e = d->cuda.library_kernel(&k->kernel[i], k->library, names[i]);
    return e ? device_fail(d, err, e, "load the kernels") : try_all(d, err);
}

void kernels_load(struct cairn_device *d)
{
    struct kernels *k = &d->kernels;
    struct cairn_error err = CAIRN_ERROR_INIT;
    const void *image = d->cuda.kernels ? d->cuda.kernels : cairn_kernels_image_len ? cairn_kernels_image : NULL;

    if (!image)
        snprintf(k->why_not, sizeof k->why_not, "the plugin was built without nvcc");
    else if (!d->cuda.library_load)
        snprintf(k->why_not, sizeof k->why_not, "the runtime is older than 12.8");
    else if (load(d, image, &err) < 0)
        snprintf(k->why_not, sizeof k->why_not, "%.150s", err.message);
    else
        k->usable = true;
}

void kernels_unload(struct cairn_device *d)
{
    if (d->kernels.library)
        (void)d->cuda.library_unload(d->kernels.library);
    d->kernels.library = NULL;
}
