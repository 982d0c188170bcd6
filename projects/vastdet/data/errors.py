# SPDX-License-Identifier: Apache-2.0
"""Errors about one record of a dataset, which a loader may skip."""


class BrokenRecordError(ValueError):
    """One record cannot be used: its image is unreadable or its annotations make no sense.

    The message names the file and the reason. It is the only argument, so that the error keeps its
    type and its text when a data loader's worker process hands it to the main process.
    """


class MissingImageError(BrokenRecordError, FileNotFoundError):
    """The image file of a record does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])
