"""Images from data sets on the Hub: which commit, which images, and no more than is needed."""

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robench.data.imagenet.listing import listed, wnids
from tests.hub_server import TOKEN, FakeHub, serving

pyarrow = pytest.importorskip("pyarrow", reason="comes with datasets: pip install 'robench[hub]'")
parquet = pytest.importorskip("pyarrow.parquet")

IMAGENET = "ILSVRC/imagenet-1k"
FIRST = list(listed().items())[:70]
"""Enough that worker processes decode."""


def _jpeg(seed: int, size: int = 232) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=30)
    return file.getvalue()


def _parquet(rows: list[tuple[str | None, bytes, int]], names: list[str], folder: Path) -> bytes:
    """A shard as the Hub holds it: images as bytes with a path, class numbers with their names."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pyarrow.table(
        {
            "image": [{"bytes": image, "path": path} for path, image, _ in rows],
            "label": [label for _, _, label in rows],
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    parquet.write_table(table, folder / "shard.parquet")
    return (folder / "shard.parquet").read_bytes()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """ImageNet's validation set in small: three shards, with images that are not listed between those that are."""
    folder = tmp_path_factory.mktemp("parquet")
    names = [f"name of {wnid}" for wnid in wnids()]
    rows: list[tuple[str | None, bytes, int]] = []
    for number, (example, label) in enumerate(sorted(FIRST)):
        rows.append((f"{example}_{wnids()[label]}.JPEG", _jpeg(number), label))
        if number % 10 == 0:
            rows.append((f"ILSVRC2012_val_9999{number:04d}_n00000000.JPEG", b"never decoded", 0))
    parts = [rows[start : start + 26] for start in range(0, len(rows), 26)]
    files = {
        f"data/validation-{number:05d}-of-{len(parts):05d}.parquet": _parquet(part, names, folder)
        for number, part in enumerate(parts)
    }
    return {**files, "README.md": b"---\nlicense: other\n---\n"}


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with serving() as hub:
        yield hub


def _elsewhere(code: str, server: FakeHub, folder: Path, token: str | None = TOKEN) -> Any:
    """What code prints as JSON in a process of its own: the libraries read their settings when they are imported."""
    settings = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | settings
    if token is not None:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


OPEN = """
    import hashlib, json
    from robench.data import open_source
    from robench.errors import DataError
    def look(reference, limit, **more):
        try:
            source = open_source("imagenet", reference, resize=None, crop=224, limit=limit, **more)
        except DataError as error:
            return str(error)
        found = source.images(range(len(source.ids))[:limit])
        images = [hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in found]
        return [list(source.ids[:limit]), list(source.labels[:limit]), images, source.reference, len(source.ids)]
"""


def _pixels(content: bytes) -> str:
    """The view of a protocol without resizing, by Pillow and NumPy alone."""
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[4:228, 4:228]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    return hashlib.sha256(planes.tobytes()).hexdigest()


def test_the_listed_images_of_imagenet_are_found_by_name(
    server: FakeHub, shards: dict[str, bytes], tmp_path: Path
) -> None:
    commit = server.add(f"datasets/{IMAGENET}", shards, gated=True)
    code = f"""{OPEN}
    name = "hf-hub:{IMAGENET}"
    found = [look(name, 70, workers=2), look(name + "@{commit}", 5, workers=0), look(name, 71), look(name, None)]
    print(json.dumps(found))
    """
    whole, few, more, everything = _elsewhere(code, server, tmp_path)
    content = {example: _jpeg(number) for number, (example, _) in enumerate(sorted(FIRST))}
    assert whole[0] == [example for example, _ in FIRST]
    assert whole[1] == [label for _, label in FIRST]
    assert whole[2] == [_pixels(content[example]) for example, _ in FIRST]
    assert whole[3] == few[3] == f"hf-hub:{IMAGENET}@{commit}"
    assert few[:3] == [part[:5] for part in whole[:3]]
    missing = next(example for example in list(listed())[70:])
    assert more == (
        f"hf-hub:{IMAGENET}: `images` is 1 of 71 missing ({missing}.JPEG); expected all images of the protocol's list."
    )
    assert "`images` is 4930 of 5000 missing (" in everything
    kept = [path.name for path in (tmp_path / "home").rglob("ILSVRC2012*")]
    assert sorted(kept) == sorted(f"{example}.JPEG" for example, _ in FIRST)
    files = [request for request in server.log if "resolve" in request.path]
    assert all(commit in request.path for request in files)
    assert {request.token for request in files} == {TOKEN}  # it is gated
    assert {request.token for request in server.log if request.origin == "cdn"} <= {None}
    server.log.clear()
    again = _elsewhere(f'{OPEN}\n    print(json.dumps(look("hf-hub:{IMAGENET}@{commit}", 70)))', server, tmp_path)
    assert again == whole
    assert server.log == []


def test_few_images_need_few_shards(server: FakeHub, shards: dict[str, bytes], tmp_path: Path) -> None:
    """Streaming ends with the last image that is wanted; what was seen of the list on the way is kept."""
    first = min(FIRST)[0]
    server.add(f"datasets/{IMAGENET}", shards)
    code = f"""
        import json
        from robench.data import hub
        from robench.data.imagenet.listing import id_of
        name_of = lambda record: f"{{id_of(record.path)}}.JPEG" if id_of(record.path) else None
        folder, pinned = hub._images_in_cache("hf-hub:{IMAGENET}", "validation", ["{first}.JPEG"], name_of)
        print(json.dumps([path.name for path in folder.iterdir()]))
    """
    assert _elsewhere(code, server, tmp_path) == [f"{first}.JPEG"]
    read = {request.path for request in server.log if request.origin == "cdn" and request.method == "GET"}
    assert 1 <= len(read) < 3
    assert [request for request in server.log if request.token is not None] == []  # nothing is gated here


def test_a_gated_data_set_says_where_to_accept_its_terms(
    server: FakeHub, shards: dict[str, bytes], tmp_path: Path
) -> None:
    server.add(f"datasets/{IMAGENET}", shards, gated=True)
    code = f"""{OPEN}
    import os
    first = look("hf-hub:{IMAGENET}", 5)
    os.environ["HF_TOKEN"] = "hf_of_someone_else"
    print(json.dumps([first, look("hf-hub:{IMAGENET}", 5)]))
    """
    advice = (
        "expected an account that accepted its terms. Accept its terms at "
        f"{server.endpoint}/datasets/{IMAGENET}, then log in with `hf auth login`, or set HF_TOKEN."
    )
    assert _elsewhere(code, server, tmp_path, token=None) == [
        f"hf-hub:{IMAGENET}: `repository` is gated, and no one is logged in; {advice}",
        f"hf-hub:{IMAGENET}: `repository` is gated, and its terms are not accepted; {advice}",
    ]


def test_any_data_set_is_read_with_its_own_classes_and_a_result_names_it(server: FakeHub, tmp_path: Path) -> None:
    rows: list[tuple[str | None, bytes, int]] = [
        (f"{number}.jpg", _jpeg(number, 64), number % 10) for number in range(4)
    ]
    names = [f"class {number}" for number in range(10)]
    commit = server.add("datasets/someone/few", {"data/test-00000-of-00001.parquet": _parquet(rows, names, tmp_path)})
    code = f"""
        import json, pathlib, robench
        from robench.data import open_source
        from robench.evaluation import resume
        source = open_source("mini", "hf-hub:someone/few@{commit}", resize=None, crop=64)
        shapes = [list(image.shape) for image in source.images(range(4))]
        result = robench.evaluate("mini-resnet", "mini-pgd-linf", data="hf-hub:someone/few", run_dir="run")
        pathlib.Path("run/result.json").unlink()
        seen = [result.data.reference, result.data.count, resume("run") == result]
        print(json.dumps([dict(zip(source.ids, source.labels)), source.class_names, shapes, source.reference, seen]))
    """
    pinned = f"hf-hub:someone/few@{commit}"
    expected = [{f"{number}.jpg": number for number in range(4)}, names, [[3, 64, 64]] * 4, pinned, [pinned, 4, True]]
    assert _elsewhere(code, server, tmp_path) == expected


def test_what_holds_no_images_is_named(server: FakeHub, tmp_path: Path) -> None:
    wrong = {
        "broken": ({"data/test-0.parquet": b"no parquet"}, "`data` is unreadable ("),
        "empty": ({"README.md": b"empty"}, "`data` is unreadable ("),
        "table": ({"data.csv": b"a,b\n1,2\n"}, "`columns` is of no known kind; expected one with images."),
    }
    for name, (files, _) in wrong.items():
        server.add(f"datasets/someone/{name}", files)
    code = f"""{OPEN.replace('"imagenet"', '"mini"')}
    print(json.dumps([look("hf-hub:someone/" + name, 5) for name in {list(wrong)}]))
    """
    messages = _elsewhere(code, server, tmp_path)
    for (name, (_, expected)), message in zip(wrong.items(), messages, strict=True):
        assert message.startswith(f"hf-hub:someone/{name}: {expected}"), message
