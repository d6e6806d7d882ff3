"""What stands beside a shifted result: clean accuracy on its own classes, enough logits, and who made the images."""

import json
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from robench.cli.evaluate import _report
from robench.cli.shifts import show_beside_clean
from robench.comparison import clean_among, effective_robustness
from robench.data.copies import MANIFESTS, generated_by
from robench.data.imagenet.subsets import subset
from robench.data.trees import FolderTree, SubTree, open_tree
from robench.errors import DataError, ModelError
from robench.evaluation import Options, evaluate, resume
from tests.shifted_trees import cells_tree, pictures, validation_names, wnid_tree

A = subset("imagenet-a")
LABELS = [6, 11, 0, 1, 13, 15, 999, 17]
"""Classes 0, 1 and 999 are none of ImageNet-A's."""


def half_right(images: Tensor) -> Tensor:
    """Right where the first value of an image, its number, is even; else the next class of the 1,000 is said."""
    numbers = (images[:, 0, 0, 0] * 255).round().long() % len(LABELS)
    said = torch.tensor(LABELS)[numbers] + numbers % 2
    return 3 * torch.nn.functional.one_hot(said % 1000, 1000).float()


def _data() -> tuple[Tensor, Tensor]:
    images = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(8)
    return images, torch.tensor(LABELS)


def test_clean_accuracy_on_the_classes_of_a_set_stands_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(name="half")
    results = evaluate(half_right, ["imagenet-val", "imagenet-a"], data=_data(), run_dir=tmp_path, options=options)
    clean, shifted = results
    assert clean.clean.value == 0.5
    found = clean_among(clean, A)  # images 0, 1, 4, 5, 7 are of its classes; 0 and 4 are right
    assert found is not None
    assert (found.numerator, found.denominator) == (2, 5)
    assert clean_among(clean, [500]) is None
    show_beside_clean([clean, shifted])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(
        "imagenet-a: clean 40.0 % [11.8, 76.9] on its 200 classes (5 images of imagenet-val), shifted 50.0 %, both over"
    )
    show_beside_clean([shifted])
    assert capsys.readouterr().out == ""


def test_effective_robustness_is_printed_and_is_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(name="half")
    results = evaluate(half_right, ["imagenet-val", "imagenet-a"], data=_data(), run_dir=tmp_path, options=options)
    clean, arrays = results
    shifted = arrays.model_copy(update={"data": arrays.data.model_copy(update={"source": "imagenet-a"})})
    expected = effective_robustness(shifted, clean)
    assert expected is not None
    _report([clean, shifted], json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert second["effective_robustness"] == expected.model_dump(mode="json")
    assert "effective_robustness" not in first
    _report([shifted], json=True)
    assert "effective_robustness" not in json.loads(capsys.readouterr().out)
    show_beside_clean([clean, shifted])
    said = f"imagenet-a: effective robustness {expected.text} {expected.bounds}"
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_model_with_too_few_logits_is_refused_at_the_door(tmp_path: Path) -> None:
    """The labels alone would need 100; the arg-max among the classes of ImageNet-A reads logit 988."""
    images, _ = _data()
    labels = torch.tensor([6, 11, 13, 15, 17, 22, 23, 99])

    def small(batch: Tensor) -> Tensor:
        return batch.flatten(1).sum(dim=1, keepdim=True) + torch.arange(100.0)

    with pytest.raises(ModelError, match=r"expected .*989"):
        evaluate(small, "imagenet-a", data=(images, labels), run_dir=tmp_path, options=Options(name="small"))


def test_data_with_too_few_classes_are_refused(tmp_path: Path) -> None:
    class Ten:
        name, classes, ids, labels = "ten", 10, ("a", "b"), (0, 1)

        def images(self, positions: object) -> object:
            raise AssertionError("nothing is read")

    message = r"^robench: `data` is ten, with 10 classes; expected at least 989, as imagenet-a@1 reads them\.$"
    with pytest.raises(DataError, match=message):
        evaluate(half_right, "imagenet-a", data=Ten(), run_dir=tmp_path, options=Options(name="half"))


def first_class(images: Tensor) -> Tensor:
    return (
        torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 1000) + images.mean(dim=(2, 3))[:, :1]
    )


@pytest.mark.parametrize("manifest", [None, *MANIFESTS])
def test_images_that_robench_made_are_never_official(manifest: str | None, tmp_path: Path) -> None:
    root = cells_tree(tmp_path / "c", pictures(tmp_path / "pictures"), validation_names(4))
    if manifest is not None:
        (root / manifest).write_text("{}\n")
    options = Options(name="first", workers=0)
    result = evaluate(first_class, "imagenet-c", data=root, limit=4, run_dir=tmp_path / "run", options=options)
    said = f"The images were made by robench, as {manifest} says; they are not the published set."
    assert (said in result.caveats) == (manifest is not None)
    assert result.data.official == (manifest is None)
    assert result.data.source == ("imagenet-c-generated" if manifest is not None else "imagenet-c")


@pytest.mark.parametrize("frost", ["procedural", "published", "<b>", None])
def test_an_archive_that_robench_made_is_known_by_its_manifest_and_says_what_frost_was(
    frost: str | None, tmp_path: Path
) -> None:
    root = cells_tree(tmp_path / "c", pictures(tmp_path / "pictures"), validation_names(4))
    (root / "robench-corruptions.json").write_text(json.dumps({} if frost is None else {"frost": frost}))
    with tarfile.open(tmp_path / "c.tar", "w", dereference=True) as archive:
        archive.add(root, arcname="c")
    options = Options(name="first", workers=0)
    path = tmp_path / "c.tar"
    result = evaluate(first_class, "imagenet-c", data=path, limit=4, run_dir=tmp_path / "run", options=options)
    more = f" (frost: {frost})" if frost in ("procedural", "published") else ""
    said = f"The images were made by robench, as robench-corruptions.json{more} says; they are not the published set."
    assert said in result.caveats
    assert (result.data.source, result.data.official) == ("imagenet-c-generated", False)


def test_a_manifest_is_found_from_the_folder_of_classes(tmp_path: Path) -> None:
    tree = wnid_tree(tmp_path / "sin" / "val", pictures(tmp_path / "pictures", size=(8, 8)), range(2))
    assert generated_by(FolderTree(tree)) is None
    with tarfile.open(tmp_path / "sin.tar", "w", dereference=True) as archive:
        archive.add(tmp_path / "sin", arcname="sin")
    whole = open_tree(tmp_path / "sin.tar", "images")
    assert generated_by(SubTree(whole, "sin/val")) is None
    (tmp_path / "sin" / "robench-stylized.json").write_text("{}\n")
    with tarfile.open(tmp_path / "sin.tar", "w", dereference=True) as archive:
        archive.add(tmp_path / "sin", arcname="sin")
    assert generated_by(SubTree(open_tree(tmp_path / "sin.tar", "images"), "sin/val")) == "robench-stylized.json"
    assert generated_by(FolderTree(tree)) == "robench-stylized.json"


def test_a_manifest_lies_beside_several_archives(tmp_path: Path) -> None:
    root = cells_tree(tmp_path / "c", pictures(tmp_path / "pictures"), validation_names(4))
    tars = tmp_path / "tars"
    tars.mkdir()
    for folder in sorted(root.iterdir()):
        with tarfile.open(tars / f"{folder.name}.tar", "w", dereference=True) as archive:
            archive.add(folder, arcname=folder.name)
    (tars / "robench-corruptions.json").write_text("{}")
    options = Options(name="first", workers=0)
    result = evaluate(first_class, "imagenet-c", data=tars, limit=4, run_dir=tmp_path / "run", options=options)
    assert result.data.source == "imagenet-c-generated"


def test_a_run_on_a_generated_tree_is_resumed_by_name(tmp_path: Path) -> None:
    root = cells_tree(tmp_path / "c", pictures(tmp_path / "pictures"), validation_names(4))
    (root / "robench-corruptions.json").write_text("{}")
    small = timm.create_model("test_resnet", pretrained=False)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    options = Options(weights=tmp_path / "small.safetensors", workers=0)
    folder = tmp_path / "run"
    result = evaluate("timm:test_resnet", "imagenet-c", data=root, limit=2, run_dir=folder, options=options)
    (folder / "result.json").unlink()
    assert resume(folder, workers=0).outcomes == result.outcomes
