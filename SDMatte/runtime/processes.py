"""What every process that this package starts has in common."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Has this process end when the one that started it has, however that was.

    A process that was killed has told nobody, and signals that it would have sent may be ignored.
    """

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
