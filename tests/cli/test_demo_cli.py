"""The arguments of ``sdmatte demo``; the page itself is tested in tests/demo."""

import socket
import sys

import pytest
from models import SMALL

from SDMatte.cli.main import build_parser, main

MODEL = ["--model", str(SMALL), "--device", "cpu"]


def test_defaults_are_for_this_machine_only():
    args = build_parser("demo").parse_args(["demo"])
    assert args.host == "127.0.0.1" and not args.share and args.model is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "70000"], "--port must be from 1 to 65535; got 70000."),
        (["--max-pixels", "0"], "--max-pixels must be at least 1"),
        (["--max-upload", "nan"], "--max-upload from 0.001"),
    ],
)
def test_invalid_arguments_are_one_sentence(words, sentence, capsys):
    assert main(["demo", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_missing_gradio_is_reported_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "error: sdmatte demo needs gradio: run `python tools/install_demo.py`.\n"
    )


def test_a_port_in_use_is_one_sentence(capsys):
    pytest.importorskip("gradio", reason="gradio is not installed: python tools/install_demo.py")
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        assert main(["demo", "--port", str(port), *MODEL, "--resolution", "128"]) == 2
    assert f"error: Cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
