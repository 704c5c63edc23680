import pytest


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch):
    monkeypatch.delenv("SDMATTE_DATA_ROOT", raising=False)
