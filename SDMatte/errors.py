"""Errors that a user can cause: one sentence that names the thing and what is allowed.

Each is also the standard exception that Python code expects, so that ``except ValueError`` around
a prediction catches a bad prompt. The command line prints such an error without a stack trace and
exits with status 2; any other exception is a bug and keeps its trace.
"""


class SDMatteError(Exception):
    """Base of all errors caused by user input."""


class ConfigError(SDMatteError, ValueError):
    """A config file, an override or a combination of settings is invalid."""


class DataError(SDMatteError, ValueError):
    """A folder, list or image is unreadable or does not match its partner."""


class MissingFileError(DataError, FileNotFoundError):
    """A folder, list or image does not exist."""


class CheckpointError(SDMatteError, ValueError):
    """Weights are truncated, of another model or of another shape."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint or model folder does not exist, on disk or on the hub."""


class PromptError(SDMatteError, ValueError):
    """A visual prompt is unknown or does not fit its image."""


class DependencyError(SDMatteError, ImportError):
    """A package is not installed, or its version is not supported."""


class OutputError(SDMatteError, OSError):
    """A folder or a file cannot be written."""


class ProcessError(SDMatteError, RuntimeError):
    """A process of a run died, or no longer answers."""


class RunStopped(SDMatteError):
    """A signal asked the run to stop.

    Attributes:
        status: The exit status: 128 plus the signal's number, as shells have it.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple:
        """Keep the status when the error crosses from one process to another."""
        return type(self), (str(self), self.status)
