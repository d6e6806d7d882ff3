"""Reads the images of a run: shards are claimed as their first image is drawn, and no further ahead than is fair.

Not here: when a shard is left to other processes (`share`), and how images are decoded (`data`).
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import cast

from torch import Tensor

from robench.data import Source
from robench.data.source import Ahead, Unreadable
from robench.errors import DataError, complaint


class ClaimedImages:
    """The images of shards, one by one.

    Args:
      source: has the images.
      shards: positions of the examples of each shard; to draw one claims it.
      wait: whether the next shard is to be left to other processes for now, with so many examples that are claimed and
        not read; None: never.
    """

    def __init__(self, source: Source, shards: Iterator[Iterable[int]], wait: Callable[[int], bool] | None) -> None:
        self._source, self._read = source, 0
        self._reads_ahead = _reads_ahead(source)
        self._wait = wait or (lambda ahead: False)
        # Only who reads ahead may be told None; others draw for the image that is asked for.
        self._positions = _Positions(shards, lambda: self._reads_ahead and self._wait(self.ahead))

    @property
    def ahead(self) -> int:
        """Examples that are drawn, and so claimed, but not read: nobody else can make them."""
        return self._positions.count - self._read

    def images(self) -> Generator[tuple[int, Tensor | Unreadable] | None, None, None]:
        """Position and image of each example; None as long as the next shard is left to others.

        Raises:
          DataError: the source has more or fewer images than it was asked for.
        """
        positions = self._positions
        images = self._begin()
        try:
            for number in itertools.count():
                if not self.ahead and not positions.shard:
                    while self._wait(0):
                        yield None
                    positions.granted = True
                image = next(images, _END)
                if isinstance(image, _End):
                    break
                position = positions.drawn[number] if number < len(positions.drawn) else None
                if (image is None) != (position is None):
                    raise self._error("too few" if image is None else "too many")
                if image is not None and position is not None:
                    self._read += 1
                    yield position, image
            if number < len(positions.drawn) or positions.draw():
                raise self._error("too few")
        finally:
            if isinstance(images, Generator):  # a source of the user's may be any iterator
                images.close()

    def _error(self, found: str) -> DataError:
        return DataError(complaint(self._source.name, "images", found, "one for each position asked for"))

    def _begin(self) -> Iterator[Tensor | Unreadable | None]:
        if self._reads_ahead:
            return iter(cast("Ahead", self._source).images_ahead(self._positions))
        return iter(self._source.images(cast("Iterable[int]", self._positions)))


def _reads_ahead(source: Source) -> bool:
    """Whether a source has `images_ahead`, and no `images` of a subclass that means something else."""
    owner = next((each for each in type(source).__mro__ if "images" in vars(each)), None)
    return owner is not None and "images_ahead" in vars(owner)


class _End:
    """Stands behind the last image."""


_END = _End()


class _Positions:
    """Positions of examples, drawn as they are read; a source may read them more than once.

    Args:
      shards: the positions of each.
      wait: whether to leave the next shard for now. A reader is then told None.

    Attributes:
      drawn: what readers were told.
      count: positions among them.
      shard: what is left of the shard that was drawn last.
      granted: whether the next shard is drawn without asking.
    """

    def __init__(self, shards: Iterator[Iterable[int]], wait: Callable[[], bool]) -> None:
        self.drawn: list[int | None] = []
        self.count = 0
        self.shard: deque[int] = deque()
        self.granted = True
        self._shards, self._wait, self._ended = shards, wait, False

    def __iter__(self) -> Iterator[int | None]:
        for number in itertools.count():
            if number == len(self.drawn) and not self.draw():
                return
            yield self.drawn[number]

    def draw(self) -> bool:
        """Draw one more, or None for now; False if there are no more."""
        if not self.shard and not self._ended:
            if not self.granted and self._wait():
                self.drawn.append(None)
                return True
            self.granted = False
            shard = next(self._shards, None)
            self.shard, self._ended = deque(shard or ()), shard is None
        if self._ended:
            return False
        self.drawn.append(self.shard.popleft())
        self.count += 1
        return True
