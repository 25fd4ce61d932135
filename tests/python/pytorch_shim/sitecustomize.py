# SPDX-License-Identifier: Apache-2.0
"""Puts Cairn in the place of torch.distributed.checkpoint's file-system storage, in every Python process that has this
directory in its PYTHONPATH. pytorch_suite.py runs PyTorch's own tests with it."""
import importlib.abc
import importlib.util
import sys

PACKAGE = "torch.distributed.checkpoint"


class AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the package as ever, then replaces two of its classes."""

    def find_spec(self, name, path=None, target=None):
        if name != PACKAGE:
            return None
        sys.meta_path.remove(self)
        self.spec = importlib.util.find_spec(name)
        self.loader, self.spec.loader = self.spec.loader, self
        return self.spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        import torch.distributed.checkpoint._storage_utils as utils
        import torch.distributed.checkpoint.filesystem as filesystem

        import pytorch_storage

        for place in (module, utils, filesystem, sys.modules.get("torch.distributed.checkpoint.format_utils")):
            if place is not None:
                place.FileSystemWriter = pytorch_storage.FileSystemWriter
                place.FileSystemReader = pytorch_storage.FileSystemReader


sys.meta_path.insert(0, AfterImport())
