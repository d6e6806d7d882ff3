"""The list of baselines says what timm says, and its commands are commands."""

import shlex

import pytest
import timm
import torch

from robench.hub import parse
from robench.training import load_recipe
from robench.training.construction import build_model
from robench.zoo import MODELS, load_model
from robench.zoo.baselines import Baseline, bundled, listed, pickled

LISTED = [pytest.param(each, id=each.title) for each in listed()]


@pytest.mark.parametrize("baseline", LISTED)
def test_a_baseline_is_as_timm_or_its_recipe_states_it(baseline: Baseline) -> None:
    if baseline.status == "unpublished":
        recipe = load_recipe(baseline.name)
        assert recipe.data.size == baseline.input_size
        with torch.device("meta"):
            built = build_model(recipe)
        assert sum(parameter.numel() for parameter in built.parameters()) == baseline.parameters
        return
    name = baseline.name.removeprefix("timm:") if baseline.status == "published" else baseline.architecture
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == baseline.parameters
    settings = network.pretrained_cfg
    assert tuple(settings["input_size"]) == (3, baseline.input_size, baseline.input_size)
    if baseline.status == "published":
        assert baseline.name.startswith("timm:")
        assert settings["hf_hub_id"] == f"timm/{name}"
        assert settings["license"] == baseline.licence


def test_names_and_titles_are_unique_and_each_kind_is_whole() -> None:
    rows = [*bundled(), *listed()]
    assert len({each.name for each in rows}) == len({each.title for each in rows}) == len(rows)
    assert {each.status for each in rows} == {"bundled", "published", "pickled", "unpublished"}
    for each in rows:
        assert (each.licence is None) == (each.status == "unpublished")
        assert (each.architecture is not None) == (each.status == "pickled")


def test_what_everyone_compares_with_is_there() -> None:
    titles = {each.title for each in listed()}
    assert {"ResNet-50", "DeiT-S", "ConvNeXt-T", "Swin-T", "DeiT-Mini, 100 epochs"} <= titles


def test_what_is_bundled_is_counted() -> None:
    assert [each.name for each in bundled()] == list(MODELS)
    for each in bundled():
        assert each.parameters == sum(parameter.numel() for parameter in load_model(each.name).parameters())


def test_commands_are_for_a_shell() -> None:
    commands = {each.title: [shlex.split(command) for command in each.commands] for each in listed()}
    assert commands["ResNet-50"] == [["robench", "evaluate", "timm:resnet50.a1_in1k", "PROTOCOL"]]
    source = "hf-hub:madrylab/robust-imagenet-models/resnet50_linf_eps4.0.ckpt"
    assert commands["ResNet-50, L-inf 4/255, Salman 2020"] == [["robench", "convert", source, "resnet50_linf_eps4.0"]]
    trained = ["robench", "train", "deit-mini", "--data", "IMAGENET", "--push", "YOU/deit-mini"]
    assert commands["DeiT-Mini, 100 epochs"] == [trained]


def test_a_pickle_is_known_at_any_revision() -> None:
    for each in listed():
        if each.status == "pickled":
            assert parse(each.name).file is not None
            assert pickled(each.name) == pickled(f"{each.name}@main") == each
    assert pickled("hf-hub:madrylab/robust-imagenet-models/other.ckpt") is None
