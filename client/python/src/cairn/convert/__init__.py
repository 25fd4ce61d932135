# SPDX-License-Identifier: Apache-2.0
"""Ways out and in: checkpoints as files of PyTorch's own formats, and files as checkpoints.

`cairn restore --format torch|dcp` and `cairn import` run it; `python3 -m cairn.convert` does the same by hand. Both
directions stream: memory is bounded whatever the size of a tensor. No pickle is executed: torch.save files
are read by torch's weights-only reader, DCP's .metadata with an allow-list.
"""
