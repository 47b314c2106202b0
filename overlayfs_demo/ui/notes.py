"""What modules log, shown to the person at the terminal."""

from __future__ import annotations

import logging

from overlayfs_demo.ui.console import note


class Notes(logging.Handler):
    """Prints records as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as `note` does. As in every handler, a failure to print is no failure of the program."""
        try:
            note(self.format(record))
        except OSError:
            self.handleError(record)
