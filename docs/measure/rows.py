"""At which batch sizes a row's logits or gradient get other bits than among 128 rows; a line for each bundled model.

    python docs/measure/rows.py --threads 2

Looked at are the copies that attacks look at, with 16 to 127 rows; smaller batches are padded to 16.
"""

import argparse
import sys

import torch
from torch import Tensor

from robench.classifier import MINIMUM_ROWS, Classifier
from robench.data.mini import attack_set
from robench.fastpath import quicken
from robench.zoo import MODELS, load_model

ROWS = 128


def main() -> None:
    """Compare every size, and print those that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=2, type=int)
    torch.set_num_threads(parser.parse_args().threads)
    images = torch.from_numpy(attack_set()[0][:ROWS]).float() / 255
    for name in MODELS:
        classifier = quicken(Classifier(load_model(name).eval()), images).classifier
        sizes = range(MINIMUM_ROWS, ROWS)
        with classifier.frozen():
            whole = _looked(classifier, images)
            differ = [size for size in sizes if not _same(_looked(classifier, images[:size]), whole)]
        sys.stdout.write(f"{name}: {differ or 'none'}\n")


def _looked(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with and without gradient, and the gradient of a loss."""
    logits, _, gradient = classifier.gradient(images, lambda logits: logits.logsumexp(dim=1) - logits[:, 0])
    return classifier.logits(images), logits, gradient


def _same(found: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(one, other[: len(one)]) for one, other in zip(found, whole, strict=True))


if __name__ == "__main__":
    main()
