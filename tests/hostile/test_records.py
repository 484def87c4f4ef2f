"""A folder of a result may come from anybody: what is in it is data."""

import json
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nets
import opsin
from hostile.records import DAMAGES, OWN_DAMAGES, results
from opsin.registry import catalogue

KINDS = results()
CASES = [(kind, damage) for kind in KINDS for damage in DAMAGES] + list(OWN_DAMAGES)
# What a kind does not look at: it holds no arrays, or has room for any.
HARMLESS = {(kind, damage) for kind in ("Findings", "Units") for damage in ("one side less", "no numbers")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a result of every kind."""
    folder = tmp_path_factory.mktemp("saved")
    for kind, result in KINDS.items():
        result.save(folder / kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_an_undamaged_result_of_every_kind_comes_back(saved, kind):
    assert opsin.Result.load(saved / kind) == KINDS[kind]


def test_a_result_of_before_records_had_targets_is_loaded(saved, tmp_path):
    shutil.copytree(saved / "Heatmap", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "record.json").read_text())
    del about["record"]["targets"]
    (tmp_path / "out" / "record.json").write_text(json.dumps(about))
    assert opsin.Result.load(tmp_path / "out").record == replace(KINDS["Heatmap"].record, targets=())


@pytest.mark.parametrize("number", ["null", "NaN", "-Infinity", "1e999"])
def test_a_score_that_is_not_finite_is_none(saved, tmp_path, number):
    shutil.copytree(saved / "Heatmap", tmp_path / "out")
    path = tmp_path / "out" / "record.json"
    path.write_text(path.read_text().replace('"score": 3.5', f'"score": {number}'))
    (target,) = opsin.Result.load(tmp_path / "out").record.targets
    assert (target.score, target.probability) == (None, 0.25)


@pytest.mark.parametrize(("kind", "damage"), [case for case in CASES if case not in HARMLESS])
def test_a_damaged_result_is_refused_with_the_file_and_the_fault(saved, tmp_path, call, kind, damage):
    shutil.copytree(saved / kind, tmp_path / "out")
    OWN_DAMAGES.get((kind, damage), DAMAGES.get(damage))(tmp_path / "out")
    with pytest.raises(opsin.InputError, match=r"record\.json|values\.npz"):
        opsin.Result.load(tmp_path / "out")
    code, out, err = call("resume", tmp_path / "out", "-m", "net.py:good")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) <= 3
    assert "Traceback" not in err
    assert not Path("executed").exists()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32), name=st.sampled_from(["record.json", "values.npz"]), count=st.integers(1, 20)
)
def test_random_bytes_in_a_result_give_a_result_or_one_error(
    saved, tmp_path_factory, kind, seed, name, count
):
    folder = tmp_path_factory.mktemp("fuzz") / "out"
    shutil.copytree(saved / kind, folder)
    draw = random.Random(seed)
    data = bytearray((folder / name).read_bytes())
    for _ in range(count):
        data[draw.randrange(len(data))] = draw.randrange(256)
    (folder / name).write_bytes(data)
    with suppress(opsin.InputError):
        opsin.Result.load(folder).pictures()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_any_json_in_the_place_of_a_part_of_the_record_gives_a_result_or_one_error(
    saved, tmp_path_factory, kind, draw
):
    folder = tmp_path_factory.mktemp("fuzz") / "out"
    shutil.copytree(saved / kind, folder)
    about = json.loads((folder / "record.json").read_text())
    part = draw.draw(st.sampled_from([about, about["record"]]))
    part[draw.draw(st.sampled_from(sorted(part)))] = draw.draw(JSON)
    (folder / "record.json").write_text(json.dumps(about))
    with suppress(opsin.InputError):
        opsin.Result.load(folder)


# --- going on from a hostile state

MODEL = nets.model(nets.plain())


def climbed():
    return opsin.class_model(MODEL, 1, steps=2)


STATES = {
    "no number": lambda state: state.pop("class model/number"),
    "number of two": lambda state: state.update({"class model/number": torch.tensor([1, 2])}),
    "number below zero": lambda state: state.update({"class model/number": torch.tensor(-1)}),
    "number not whole": lambda state: state.update({"class model/number": torch.tensor(0.5)}),
    "another unfinished climb": lambda state: state.update({"x/finished": torch.tensor(False)}),
    "no unfinished climb": lambda state: state.update({"class model/finished": torch.tensor(True)}),
    "not said whether finished": lambda state: state.pop("class model/finished"),
    "no parameters": lambda state: state.pop("class model/parameters"),
    "other parameters": lambda state: state.update({"class model/parameters": torch.zeros(1, 3, 5, 5)}),
    "no generator": lambda state: state.pop("class model/generator"),
    "short generator": lambda state: state.update({"class model/generator": torch.zeros(3).byte()}),
    "generator of floats": lambda state: state.update({"class model/generator": torch.zeros(5056)}),
    "no scores": lambda state: state.pop("class model/scores"),
    "scores of more pictures": lambda state: state.update({"class model/scores": torch.zeros(2, 7)}),
    "other moments": lambda state: state.update({"class model/moment.exp_avg": torch.zeros(2)}),
}


@pytest.mark.parametrize("damage", STATES)
def test_a_hostile_state_is_refused(damage):
    made = climbed()
    STATES[damage](made.state)
    with pytest.raises(opsin.InputError, match="damaged"):
        opsin.resume(made, MODEL, steps=4)


@pytest.mark.parametrize("model", [{}, {"sha256": 3}, {"sha256": None, "name": []}])
def test_a_record_that_does_not_say_which_network_is_refused(model):
    made = climbed()
    object.__setattr__(made.record, "model", model)
    with pytest.raises(opsin.InputError, match="made with"):
        opsin.resume(made, MODEL)


@pytest.mark.parametrize("technique", ["os", "../cli", "class_model.py", ""])
def test_a_record_of_no_technique_is_refused(technique):
    made = climbed()
    object.__setattr__(made.record, "technique", technique)
    with pytest.raises(opsin.InputError, match="unknown technique"):
        opsin.resume(made, MODEL)
    assert technique not in catalogue.names()
