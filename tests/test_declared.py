"""What a technique's file declares is read without torch, and is what the technique is called with."""

import dataclasses
import subprocess
import sys

import pytest

from opsin.registry import catalogue

HELP = """
import sys
from opsin.cli.main import main
sys.argv = ["opsin", sys.argv[1], "--help"]
try:
    main()
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("name", catalogue.names())
def test_a_declaration_equals_the_technique(name):
    declared, technique = catalogue.declared(name), catalogue.get(name)
    assert declared.summary == technique.summary
    for field in dataclasses.fields(technique):
        if field.name not in ("run", "parameters"):
            assert getattr(declared, field.name) == getattr(technique, field.name)
    assert list(declared.parameters) == list(technique.parameters)
    for key, parameter in technique.parameters.items():
        same = declared.parameters[key]
        assert same.arg == parameter.arg
        assert (same.required, same.choices) == (parameter.required, parameter.choices)
        if parameter.arg.role == "value":
            assert (same.type, same.default) == (parameter.type, parameter.default)


def test_the_help_of_a_technique_does_without_torch():
    words = [sys.executable, "-c", HELP, "style_transfer"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "--keep-colours" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
