# SPDX-License-Identifier: Apache-2.0
"""A line on the terminal: how far it is, how fast, how long still."""

from __future__ import annotations

import sys
import time

_WIDTH = 30
_EVERY_S = 0.1


class Progress:
    """Counts bytes; draws on standard error when that is a terminal and quiet is not set. Not thread-safe."""

    def __init__(self, total_bytes: int, quiet: bool = False) -> None:
        self.total = total_bytes
        self.done = 0
        self._begin = self._drawn = time.monotonic()
        self._shows = not quiet and sys.stderr.isatty()

    def add(self, nbytes: int) -> None:
        """So many bytes more are done."""
        self.done += nbytes
        now = time.monotonic()
        if self._shows and now - self._drawn >= _EVERY_S:
            self._drawn = now
            self._draw(now)

    def _draw(self, now: float) -> None:
        part = self.done / self.total if self.total else 1.0
        rate = self.done / max(now - self._begin, 1e-9)
        bar = "#" * int(part * _WIDTH)
        left = (self.total - self.done) / rate if rate else 0
        sys.stderr.write(
            f"\r[{bar:.<{_WIDTH}}] {part:4.0%}  {rate / (1 << 20):.0f} MiB/s  {left:.0f} s left "
        )
        sys.stderr.flush()

    def close(self) -> None:
        """Takes the line away."""
        if self._shows:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
