"""Groups of classes over which probabilities are averaged before a decision.

Not here: the decision (`robench.unattacked`).
"""

from functools import cache

from robench.errors import DataError, complaint, did_you_mean

_SIXTEEN = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}
"""Classes of ImageNet-1k in each of the 16 categories of the cue-conflict images, as numbers and ranges.

References:
  Geirhos et al. 2019, arXiv:1811.12231; bethgelab/model-vs-human, `human_categories.py`.
"""


def _numbers(ranges: str) -> tuple[int, ...]:
    """The numbers of some ranges, both ends included."""
    ends = ([int(end) for end in each.split("-")] for each in ranges.split())
    return tuple(number for each in ends for number in range(each[0], each[-1] + 1))


@cache
def categories(name: str) -> dict[str, tuple[int, ...]]:
    """Classes by category, sorted by the name of the category; a label is the rank of that.

    Raises:
      DataError: there is no such grouping.
    Example:
      >>> found = categories("sixteen")
      >>> len(found), sum(map(len, found.values())), found["bicycle"]
      (16, 207, (444, 671))
    """
    if name != "sixteen":
        raise DataError(complaint("robench", "categories", f"`{name}`", "`sixteen`", did_you_mean(name, ["sixteen"])))
    return {category: _numbers(ranges) for category, ranges in sorted(_SIXTEEN.items())}
