"""Errors caused by user input. A message says in one sentence what is wrong and what is allowed.

Each error is also a matching standard exception: ``except ValueError`` around a prediction catches
an invalid prompt. The command line prints these errors without a traceback and exits with status 2;
any other exception is a bug.
"""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for quoting it in another message."""
    return str(error).strip().partition("\n")[0].rstrip(". ") or type(error).__name__


class SDMatteError(Exception):
    """Base of all errors caused by user input."""


class ConfigError(SDMatteError, ValueError):
    """A config file, an override or a combination of settings is invalid."""


class DataError(SDMatteError, ValueError):
    """A folder, list or image is unreadable or does not match another one."""


class MissingFileError(DataError, FileNotFoundError):
    """A folder, list or image does not exist."""


class CheckpointError(SDMatteError, ValueError):
    """Weights are truncated or do not fit the model."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint or model folder does not exist, on disk or on the hub."""


class PromptError(SDMatteError, ValueError):
    """A visual prompt is invalid or does not fit its image."""


class DependencyError(SDMatteError, ImportError):
    """A package is not installed, or its version is not supported."""


class OutputError(SDMatteError, OSError):
    """A file or folder cannot be written."""


class ProcessError(SDMatteError, RuntimeError):
    """A process of a run died or does not respond."""


class RunStopped(SDMatteError):
    """A signal stopped the run.

    Attributes:
        status: The exit status, 128 plus the signal's number.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple:
        """Pickle the status with the message."""
        return type(self), (str(self), self.status)
