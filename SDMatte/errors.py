"""The errors that a user can cause: one sentence that names the thing and what is allowed.

The command line prints such an error without a stack trace and exits with status 2; any other
exception is a defect of ours and keeps its trace.
"""


class SDMatteError(Exception):
    """Base of all errors caused by what the user gave us."""


class ConfigError(SDMatteError):
    """A config file, an override or a combination of settings that cannot work."""


class DataError(SDMatteError):
    """A folder, list or picture that is missing, unreadable or does not fit its partner."""


class CheckpointError(SDMatteError):
    """Weights that are missing, cut short, of another model or of another shape."""


class PromptError(SDMatteError):
    """A visual prompt that is unknown or does not fit its picture."""


class DependencyError(SDMatteError):
    """A package that is not installed, or not in a usable version."""


class OutputError(SDMatteError):
    """A folder or a file that cannot be written."""


class ProcessError(SDMatteError):
    """A process of a run that died, or no longer answers."""


class RunStopped(SDMatteError):
    """A run that a signal asked to stop.

    Attributes:
        status: The exit status that says so to a shell: 128 and the signal's number.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
