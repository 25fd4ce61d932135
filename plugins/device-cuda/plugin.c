/* SPDX-License-Identifier: Apache-2.0 */
/* device-cuda: saves from and restores to the memory of NVIDIA's GPUs. README.md says how. */
#include "plugins/device-cuda/device.h"

static const struct cairn_device_ops ops = {
    .size = sizeof ops,
    .open = device_open,
    .close = device_close,
    .describe = device_describe,
    .check = device_check,
    .pin = device_pin,
    .unpin = device_unpin,
    .plan = device_plan,
    .plan_free = plan_free,
    .save = device_save,
    .fence = device_fence,
    .progress = copy_progress,
    .copy_free = copy_free,
    .loader = device_loader,
    .loader_free = loader_free,
    .load = loader_load,
    .loaded = loader_loaded,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_DEVICE,
    .size = sizeof ops,
    .name = "device-cuda",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
