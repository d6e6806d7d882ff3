from pathlib import Path

import torch

from robench.data import ArraySource, open_source
from robench.data.decoding import Decoder
from robench.data.examination import examine
from robench.data.folder import open_folder
from robench.data.imagenet.listing import listed, wnids
from robench.data.source import ids_digest
from tests.photographs import listed_images, wnid_folders


def test_arrays_are_all_there() -> None:
    source = ArraySource(torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)), [0, 1, 3], classes=5)
    seen: list[int] = []
    found = examine(source, on_image=lambda: seen.append(1))
    assert (found.source, found.count, found.missing, found.unreadable, len(seen)) == ("arrays", 3, [], [], 3)
    assert found.missing_classes == ["2", "4"]
    assert found.ids_sha256 == ids_digest(source.ids)
    assert found.pixels_sha256 != examine(ArraySource(torch.zeros(3, 3, 4, 4), [0, 1, 3])).pixels_sha256


def test_an_image_out_of_range_cannot_be_read() -> None:
    found = examine(ArraySource(torch.full((1, 3, 4, 4), 2.0), [0]))
    assert found.unreadable == [
        "example-000000: `image` is from 2 to 2; expected values in [0, 1]. "
        "Divide by 255, and leave normalisation to the model."
    ]


def test_a_folder_names_its_empty_classes_and_unreadable_files(tmp_path: Path) -> None:
    root = wnid_folders(tmp_path)
    (root / "empty").mkdir()
    whole = examine(open_folder(root, Decoder(256, 224)))
    (root / wnids()[22] / "cut.jpg").write_bytes(next((root / wnids()[22]).iterdir()).read_bytes()[:5000])
    found = examine(open_folder(root, Decoder(256, 224)))
    assert (found.count, found.missing, found.missing_classes) == (21, [], ["empty"])
    assert [reason.split(":")[0] for reason in found.unreadable] == [f"{wnids()[22]}/cut.jpg"]
    assert found.pixels_sha256 == whole.pixels_sha256
    assert found.ids_sha256 != whole.ids_sha256


def test_of_a_list_only_what_is_there_is_read(tmp_path: Path) -> None:
    root = listed_images(tmp_path / "val", count=3)
    for limit, positions in ((1, 5000), (4, 3)):
        source = open_source("imagenet", root, resize=None, crop=8, limit=limit, workers=0)
        assert len(source.ids) == positions
        found = examine(source)
        assert (found.count, found.missing) == (3, list(listed())[3:])
        assert found.ids_sha256 == ids_digest(list(listed())[:3])
        there = {list(listed().values())[position] for position in range(3)}
        assert len(found.missing_classes) == 997 - len(there)
