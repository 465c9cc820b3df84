"""Which byte ranges to move for one chunk of one group, in as few system calls as possible.

preadv reads one contiguous file range into many buffers, pwritev writes many buffers to one contiguous file range.
So pieces are sorted by their place in client memory; pieces that touch there share a call, and those that touch in
the object as well share a buffer. Neighbouring ids, descending ids and interleaved layers all end up in long calls.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine.device.geometry import LayerGeometry

SEGMENT_SHIFT = 48

Offsets = NDArray[np.int64]

Transfer = tuple[int, int, int, Sequence[tuple[int, int]]]
"""Segment number, offset and length in it, and the [start, stop) ranges of the object on the other side, in order.

A plain tuple: scattered blocks need one per block, layer and plane, and building those must stay cheap.
"""


class PieceTable:
    """All pieces of one block over all layers of a group, as columns: where they start, and how far the next block is.

    Segments are told apart by the bits above SEGMENT_SHIFT, so pieces of two segments never seem to touch.
    """

    def __init__(self, layers: Sequence[LayerGeometry], segments: Sequence[int], blocks: int, start: int) -> None:
        """`blocks` of each chunk are kept; the group's bytes begin at byte `start` of the object."""
        rows: list[tuple[int, int, int, int, int]] = []
        at = start
        for layer, segment in zip(layers, segments, strict=True):
            for plane in layer.plane_offsets:
                for number, piece in enumerate(layer.piece_offsets):
                    source = (segment << SEGMENT_SHIFT) + plane + piece
                    target = at + number * layer.piece_bytes
                    rows.append((source, layer.block_stride, layer.piece_bytes, target, layer.block_bytes))
                at += blocks * layer.block_bytes
        columns = np.array(rows, dtype=np.int64).reshape(len(rows), 5)
        self._source, self._source_step, self._length, self._target, self._target_step = (
            np.ascontiguousarray(columns[:, [column]]) for column in range(5)
        )

    def transfers(self, block_ids: Sequence[int], first: int) -> Iterator[Transfer]:
        """The calls that move `block_ids`, which are the kept blocks number `first`, `first` + 1, ... of the chunk."""
        if not block_ids or not len(self._source):
            return iter(())
        ids = np.array(block_ids, dtype=np.int64)
        places = np.arange(first, first + len(ids), dtype=np.int64)
        source = (self._source + ids * self._source_step).ravel()
        target = (self._target + places * self._target_step).ravel()
        length = np.repeat(self._length.ravel(), len(ids))
        if (source[1:] < source[:-1]).any():
            order = np.argsort(source, kind="stable")
            source, target, length = source[order], target[order], length[order]
        return _merged(source, target, length)


def _merged(source: Offsets, target: Offsets, length: Offsets) -> Iterator[Transfer]:
    """Join what touches. A block named twice does not touch itself, so it keeps its order: the later one wins."""
    touches = source[1:] == source[:-1] + length[:-1]
    follows = target[1:] == target[:-1] + length[:-1]
    starts = _starts(touches & follows)
    length = np.add.reduceat(length, starts)
    source, target = source[starts], target[starts]
    calls = _starts(source[1:] == source[:-1] + length[:-1])
    ranges = zip(target.tolist(), (target + length).tolist(), strict=True)
    if len(calls) == len(source):
        return _calls(source, length, zip(ranges, strict=True))
    return _calls(source[calls], np.add.reduceat(length, calls), _cut(list(ranges), calls.tolist()))


def _calls(source: Offsets, length: Offsets, ranges: Iterable[Sequence[tuple[int, int]]]) -> Iterator[Transfer]:
    segments, offsets = source >> SEGMENT_SHIFT, source & (1 << SEGMENT_SHIFT) - 1
    return zip(segments.tolist(), offsets.tolist(), length.tolist(), ranges, strict=True)


def _cut(ranges: list[tuple[int, int]], starts: list[int]) -> Iterator[list[tuple[int, int]]]:
    return (ranges[begin:end] for begin, end in pairwise([*starts, len(ranges)]))


def _starts(joined: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices at which a run begins, when `joined[i]` says that i + 1 belongs to the run of i."""
    return np.concatenate((np.zeros(1, dtype=np.intp), np.flatnonzero(~joined) + 1))
