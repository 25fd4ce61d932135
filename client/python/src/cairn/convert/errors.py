# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a file that is converted."""

from __future__ import annotations

EXIT_CODES = {"not_found": 3, "unavailable": 4, "timeout": 4, "busy": 4, "corrupt": 5}


class ConvertError(Exception):
    """A file, or what is asked for, cannot be converted.

    code is one of ``cairn_code_name()``'s words ("corrupt", "exists", "unsupported", ...): it becomes the
    tool's exit code and the ``code`` of its JSON.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def exit_code(code: str) -> int:
    """The tool's exit code for an error's word, as cairn(1) lists them."""
    return EXIT_CODES.get(code, 1)
