"""Shifted sets of ImageNet as the Hub has them: whose class is whose."""

import json
import random
from pathlib import Path

import pytest

from robench.data.imagenet.columns import classes_of
from robench.data.imagenet.listing import validation, wnids
from robench.data.imagenet.subsets import subset
from robench.errors import DataError
from tests.data.test_hub import _elsewhere, _jpeg, server
from tests.hub_server import FakeHub
from tests.shifted_trees import numbered_tree, packed, pictures

pyarrow = pytest.importorskip("pyarrow", reason="comes with datasets: pip install 'robench[hub]'")
parquet = pytest.importorskip("pyarrow.parquet")

__all__ = ["server"]  # a fixture

A, WHOLE = subset("imagenet-a"), range(1000)
SOME = [0, 5, 199, 42, 5]


def test_wnids_are_what_they_say() -> None:
    assert classes_of(["n01498041", "n12267677", "n01498041"], [], A, where="x") == [6, 988, 6]


def test_numbers_of_names_are_those_of_the_wnids_in_any_order() -> None:
    names = [wnids()[label] for label in A]
    assert classes_of(SOME, names, A, where="x") == [A[place] for place in SOME]
    shuffled = random.Random(0).sample(names, 200)
    assert [wnids()[label] for label in classes_of(SOME, shuffled, A, where="x")] == [shuffled[place] for place in SOME]


def test_folders_with_numbers_sorted_as_text_are_read_as_numbers() -> None:
    """What ImageFolder makes of ImageNet-V2: place 2 is class 10."""
    names = sorted(str(number) for number in range(1000))
    assert names[:4] == ["0", "1", "10", "100"]
    assert classes_of([0, 1, 2, 3, 999], names, WHOLE, where="x") == [0, 1, 10, 100, 999]
    assert classes_of([0, 1, 2, 3, 999], [], WHOLE, where="x") == [0, 1, 2, 3, 999]


def test_bare_numbers_of_200_classes_are_ranks_or_classes_by_which_occur() -> None:
    ranks = [*range(200), 7]
    assert classes_of(ranks, [], A, where="x") == [*A, A[7]]
    assert classes_of([6, 988, 13], [], A, where="x") == [6, 988, 13]
    with pytest.raises(DataError, match=r"^x: `labels` is 2 unknown \(0, 1\); expected wnids, numbers or unmistakable"):
        classes_of([0, 1, 6], [], A, where="x")  # ranks of a part of the set would be guessed


def test_names_count_where_each_is_of_one_class_of_the_set() -> None:
    """Names as WordNet has them; "crane" is a bird (134) and a machine (517), "goldfish" one class."""
    assert classes_of([1, 0], ["Goldfish", "great_white_shark"], [1, 2], where="x") == [2, 1]
    assert classes_of([0], ["crane"], [1, 134], where="x") == [134]
    with pytest.raises(DataError, match=r"is 1 that name no class or two \(crane\); .* that has wnids\.$"):
        classes_of([0], ["crane"], WHOLE, where="x")
    with pytest.raises(DataError, match=r"is 1 that name no class or two \(nothing\); expected wnids, num"):
        classes_of([0, 1], ["goldfish", "nothing"], WHOLE, where="x")
    with pytest.raises(DataError, match=r"`class names` is two of one class; expected wnids, numbers"):
        classes_of([0, 1], ["goldfish", "Carassius auratus"], WHOLE, where="x")


def test_names_of_all_classes_must_stand_in_imagenets_order() -> None:
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", *(f"class {number}" for number in range(2, 1000))]
    assert classes_of([1, 517], names, WHOLE, where="x") == [1, 517]
    with pytest.raises(DataError, match=r"`class names` is in another order \(goldfish, Carassius auratus, tench"):
        classes_of([1], [names[1], names[0], *names[2:]], WHOLE, where="x")


def _shard(
    folder: Path, rows: list[tuple[str | None, bytes]], column: str, labels: list[object], kind: object
) -> bytes:
    features = {"image": {"_type": "Image"}, column: kind}
    stored = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    image_column = pyarrow.array([{"bytes": image, "path": path} for path, image in rows], type=stored)
    table = pyarrow.table(
        {"image": image_column, column: labels},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    parquet.write_table(table, folder / "shard.parquet")
    return (folder / "shard.parquet").read_bytes()


OPEN = """
    import json
    from robench.data import open_source
    from robench.errors import DataError
    def look(name, reference, **more):
        try:
            source = open_source(name, reference, resize=None, crop=64, **more)
        except DataError as error:
            return str(error)
        count = more.get("limit") or len(source.ids)
        shapes = {tuple(image.shape) for image in source.images(range(count))}
        found = sorted(list(zip(source.ids, source.labels))[:count])
        return [found, source.name, source.classes, source.reference, list(shapes)]
"""


def test_sets_as_they_are_on_the_hub(server: FakeHub, tmp_path: Path) -> None:  # the fixture
    """One with wnids in a column, one with ranks that have wnids for names, one with numbered folders in a tar."""
    images = [_jpeg(number, 64) for number in range(4)]
    r = subset("imagenet-r")
    by_wnid = _shard(
        tmp_path,
        [(f"{place}.jpg", image) for place, image in enumerate(images)],
        "wnid",
        [wnids()[r[place]] for place in (0, 50, 199, 0)],
        {"dtype": "string", "_type": "Value"},
    )
    ranked = _shard(
        tmp_path,
        [(None, image) for image in images],
        "label",
        [3, 0, 0, 199],
        {"names": [wnids()[label] for label in A], "_type": "ClassLabel"},
    )
    tree = numbered_tree(tmp_path / "v2", pictures(tmp_path / "pictures", size=(64, 64)), range(1000))
    tar = packed(tree, tmp_path / "v2.tar.gz", top="imagenetv2-matched-frequency-format-val", mode="w:gz")
    commits = {
        "r": server.add("datasets/some/r", {"data/test-0.parquet": by_wnid}),
        "a": server.add("datasets/some/a", {"data/train-0.parquet": ranked}),
        "v2": server.add("datasets/some/v2", {"v2.tar.gz": tar.read_bytes()}),
    }
    first = list(validation().items())[:3]
    whole = _shard(
        tmp_path,
        [(f"{example}_{wnids()[label]}.JPEG", image) for (example, label), image in zip(first, images, strict=False)],
        "label",
        [0, 0, 0],  # it is the names that count
        {"names": [f"class {number}" for number in range(1000)], "_type": "ClassLabel"},
    )
    server.add("datasets/some/whole", {"data/validation-0.parquet": whole})
    code = f"""{OPEN}
    found = [look("imagenet-val", "hf-hub:some/whole", limit=3)]
    found += [look("imagenet-r", "hf-hub:some/r", limit=4), look("imagenet-a", "hf-hub:some/a", limit=4)]
    found += [look("imagenet-v2", "hf-hub:some/v2/v2.tar.gz"), look("imagenet-a", "hf-hub:some/a@{commits["a"]}")]
    found += [look("imagenet-r", "hf-hub:some/a", limit=4)]
    print(json.dumps(found))
    """
    by_name, by_wnid_found, ranked_found, in_tar, incomplete, foreign = _elsewhere(code, server, tmp_path)
    assert by_name[:2] == [sorted(map(list, first)), "imagenet-val"]
    assert by_wnid_found == [
        sorted([f"{wnids()[r[place]]}/{file}.jpg", r[place]] for file, place in enumerate((0, 50, 199, 0))),
        "imagenet-r",
        1000,
        f"hf-hub:some/r@{commits['r']}",
        [[3, 64, 64]],
    ]
    assert isinstance(ranked_found, list), ranked_found
    labels = [A[place] for place in (3, 0, 0, 199)]
    assert ranked_found[0] == sorted([f"{wnids()[label]}/{number:08d}", label] for number, label in enumerate(labels))
    assert [label for _, label in in_tar[0]] == sorted(range(1000))
    assert {(example.split("/")[0], label) for example, label in in_tar[0]} == set(zip(wnids(), WHOLE, strict=True))
    assert in_tar[3] == f"hf-hub:some/v2/v2.tar.gz@{commits['v2']}"
    assert incomplete.startswith("hf-hub:some/a: `classes` is 197 of 200 missing (n01531178, n01534433, n01580077, ")
    assert foreign.startswith("hf-hub:some/a: `labels` is ")
