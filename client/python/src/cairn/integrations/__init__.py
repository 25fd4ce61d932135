# SPDX-License-Identifier: Apache-2.0
"""Cairn in the shape that training frameworks know.

One module per framework, each importing its framework and nothing else's; none is imported by `import cairn`:

- `cairn.integrations.lightning`           a CheckpointIO for Lightning's Trainer
- `cairn.integrations.transformers`        a callback for the Hugging Face Trainer
- `cairn.integrations.accelerate`          hooks for Accelerator.save_state and load_state
- `cairn.integrations.torch_checkpointing` a storage for torch_checkpointing's CheckpointManager
- `cairn.integrations.titan`               a checkpoint manager in torchtitan's shape
"""
