"""Errors are standard exceptions too, and can be pickled."""

import pickle

import pytest

from SDMatte import errors

BASES = {
    "ConfigError": ValueError,
    "DataError": ValueError,
    "MissingFileError": FileNotFoundError,
    "CheckpointError": ValueError,
    "MissingCheckpointError": FileNotFoundError,
    "PromptError": ValueError,
    "DependencyError": ImportError,
    "OutputError": OSError,
    "ProcessError": RuntimeError,
    "RunStopped": errors.SDMatteError,
}


def test_all_errors_are_listed():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined - {"SDMatteError"} == set(BASES)


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_bases_text_and_pickling(name, base):
    sentence = "a.png: [Errno 2] is not an image."
    kind = getattr(errors, name)
    error = kind(sentence, 143) if name == "RunStopped" else kind(sentence)
    assert isinstance(error, base) and isinstance(error, errors.SDMatteError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and str(copy) == str(error) == sentence
    assert copy.__dict__ == error.__dict__


def test_missing_files_are_errors_of_their_kind():
    assert issubclass(errors.MissingFileError, errors.DataError)
    assert issubclass(errors.MissingCheckpointError, errors.CheckpointError)
