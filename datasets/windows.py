"""Training windows: every run of L consecutive frames of a split, in a shuffled order that can be reproduced.

A window (k, t) is the frames t … t + L − 1 of trajectory k. The windows of a split are those that lie within
it: none crosses from one split, trajectory or regular stretch of time into the next.

*Reading.* Windows are grouped into blocks that are aligned to the store's chunks; a block of starts [a, b)
needs the frames [a, b + L − 1): each chunk is decompressed once, and the halo of L − 1 frames once more. An
epoch permutes the blocks, fills a pool with as many as ``buffer`` allows, permutes the windows within it, and
reads the next pool in a thread while this one is handed out. Memory is two pools, however large the store. A
source in memory is one pool of everything, where the permutation is that of all windows.

*Order.* The order is a function of (seed, epoch, rank, world, worker, workers, batch size, buffer) that is
known without reading, which makes it resumable at any batch by skipping what was seen. It holds

* that every window comes once per epoch (``drop_last=False``), in batches of which the last may be smaller;
* with ``drop_last``, that every rank gets the same number of full batches; fewer than world × batch windows
  are left out, others each epoch;
* that ranks and workers never share a window. The number of workers changes the order, not the set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .splits import Rectangle
from .store import MemorySource, Source

__all__ = ["Batch", "WindowLoader", "Windows"]

POOL_BLOCKS = 8  # at least so many blocks share a pool where memory allows, or shuffling would be local
HALO_BLOCKS = 16  # a block is so many halos long where the pool allows: 1/16 of the reading is done twice


class Batch(NamedTuple):
    """fields (B, L, C, *space) float32 in physical units; phase (B, L, 4), sines and cosines of year and
    day."""

    fields: Tensor
    phase: Tensor


@dataclass(frozen=True)
class _Pool:
    """What is in memory at one time: the rectangles to read, and where in it each window begins."""

    reads: list[tuple[Rectangle, int]]  # and the row of the pool where its frames begin
    rows: int
    begin: NDArray[np.int64]  # row of each window's first frame, in the order they are handed out
    time: NDArray[np.int64]  # its time


class Windows(IterableDataset[Batch]):
    """The windows of some rectangles of a source, batched, shuffled, divided among ranks and workers.

    Args:
        length: L, frames in a window.
        batch_size: B, windows in a batch, on each rank.
        stride: distance of the starts of neighbouring windows (1: all of them).
        shuffle: permute by (seed, epoch); else in the order of the source.
        drop_last: full batches only, equally many on every rank (none, if there are too few windows).
        rank, world: this process and their number.
        buffer: bytes for the two pools of a source that is read from disk.

    The state is (epoch, position): position counts the batches of this rank that were handed out.
    """

    def __init__(
        self,
        source: Source,
        rectangles: list[Rectangle],
        length: int,
        batch_size: int,
        *,
        stride: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        buffer: int = 2**29,
    ) -> None:
        for name, n in {"length": length, "batch_size": batch_size, "stride": stride}.items():
            if n < 1:
                raise ValueError(f"found {name}={n}, wanted at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"found rank {rank} of {world}")
        self.source, self.length, self.batch_size, self.stride = source, length, batch_size, stride
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world, self.buffer = rank, world, buffer
        self.rectangles = rectangles
        self.blocks = self._cut()
        self.counts = np.array([self._starts(b).size * (b.k1 - b.k0) for b in self.blocks], dtype=np.int64)
        if self.windows == 0:
            longest = max((r.t1 - r.t0 for r in rectangles), default=0)
            raise ValueError(
                f"found no window of {length} frames, wanted at least one: the longest run has {longest} frames. "
                "Usual fix: a shorter window, or another split"
            )
        self.epoch, self.position = 0, 0

    @property
    def windows(self) -> int:
        """How many windows there are, on all ranks together."""
        return int(self.counts.sum())

    @property
    def batches(self) -> int:
        """How many batches this rank gets in an epoch."""
        lo, hi = self._share()
        return math.ceil((hi - lo) / self.batch_size)

    # -- geometry ------------------------------------------------------------------------------------------

    def _frame_bytes(self) -> int:
        return 4 * math.prod(self.source.shape[2:])

    def _pool_rows(self) -> int:
        return max(1, self.buffer // 2 // self._frame_bytes())

    def _cut(self) -> list[Rectangle]:
        """Blocks: rectangles of window *starts*, aligned to the chunks of the source."""
        k_chunk, t_chunk = self.source.chunks
        halo = self.length - 1
        in_pool = self._pool_rows() // (POOL_BLOCKS * k_chunk * t_chunk)
        several = max(1, min(HALO_BLOCKS * math.ceil(halo / t_chunk), in_pool)) * t_chunk
        blocks = []
        for r in self.rectangles:
            last = r.t1 - halo  # starts lie in [t0, last)
            if last <= r.t0:
                continue
            if isinstance(self.source, MemorySource):
                blocks.append(Rectangle(r.k0, r.k1, r.t0, last))
                continue
            k_edges = [r.k0, *range((r.k0 // k_chunk + 1) * k_chunk, r.k1, k_chunk), r.k1]
            t_edges = [r.t0, *range((r.t0 // several + 1) * several, last, several), last]
            for k0, k1 in pairwise(k_edges):
                blocks += [Rectangle(k0, k1, a, b) for a, b in pairwise(t_edges)]
        return [b for b in blocks if self._starts(b).size]

    def _starts(self, block: Rectangle) -> NDArray[np.int64]:
        """Times at which windows begin: every ``stride``-th of the rectangle that the block was cut from."""
        origin = max(r.t0 for r in self.rectangles if r.t0 <= block.t0 and r.k0 <= block.k0 < r.k1)
        first = origin + -(-(block.t0 - origin) // self.stride) * self.stride
        return np.arange(first, block.t1, self.stride, dtype=np.int64)

    # -- order ---------------------------------------------------------------------------------------------

    def _share(self) -> tuple[int, int]:
        """This rank's part [lo, hi) of the epoch's sequence of windows."""
        if self.drop_last:
            each = self.windows // (self.world * self.batch_size) * self.batch_size
            return self.rank * each, (self.rank + 1) * each
        return self.rank * self.windows // self.world, (self.rank + 1) * self.windows // self.world

    def _worker_share(self, worker: int, workers: int) -> tuple[int, int]:
        """A worker's part of it: runs of whole batches whose numbers differ by one at most, larger ones
        first."""
        lo, hi = self._share()
        each, more = divmod(self.batches, workers)
        before = worker * each + min(worker, more)
        after = before + each + int(worker < more)
        return min(hi, lo + before * self.batch_size), min(hi, lo + after * self.batch_size)

    def _pools(self, epoch: int, lo: int, hi: int) -> Iterator[_Pool]:
        """The pools that hold the windows [lo, hi) of the epoch's sequence."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.blocks)) if self.shuffle else np.arange(len(self.blocks))
        if isinstance(self.source, MemorySource):
            yield self._whole(rng, order, lo, hi)
            return
        ends = np.cumsum(self.counts[order])
        reads: list[tuple[Rectangle, int]] = []
        begins: list[NDArray[np.int64]] = []
        times: list[NDArray[np.int64]] = []
        first, rows, at = 0, 0, 0
        for i, end in zip(order, ends, strict=True):
            start, at = at, int(end)
            a, b = max(lo, start), min(hi, at)
            if a >= b:
                continue
            block, starts = self.blocks[i], self._starts(self.blocks[i])
            K = block.k1 - block.k0
            mine = np.arange(a - start, b - start)
            k, t = mine // starts.size, starts[mine % starts.size]
            # Only the trajectories and times that these windows touch: a block at a border is read in part.
            k0, t0, t1 = int(k.min()), int(t.min()), int(t.max()) + self.length
            read = Rectangle(block.k0 + k0, block.k0 + min(K, int(k.max()) + 1), t0, t1)
            size = (read.k1 - read.k0) * (t1 - t0)
            if rows and rows + size > self._pool_rows():
                yield self._pool(epoch, first, reads, rows, begins, times)
                first, reads, begins, times, rows = a, [], [], [], 0
            first = a if not reads else first
            reads.append((read, rows))
            begins.append(rows + (k - k0) * (t1 - t0) + (t - t0))
            times.append(t)
            rows += size
        if reads:
            yield self._pool(epoch, first, reads, rows, begins, times)

    def _pool(
        self,
        epoch: int,
        first: int,
        reads: list[tuple[Rectangle, int]],
        rows: int,
        begins: list[NDArray[np.int64]],
        times: list[NDArray[np.int64]],
    ) -> _Pool:
        begin, time = np.concatenate(begins), np.concatenate(times)
        if self.shuffle:
            # Seeded by the pool's place in the epoch, so that no pool before it has to be worked out.
            order = np.random.default_rng([self.seed, epoch, first + 1]).permutation(begin.size)
            begin, time = begin[order], time[order]
        return _Pool(reads, rows, begin, time)

    def _whole(self, rng: np.random.Generator, order: NDArray[np.int64], lo: int, hi: int) -> _Pool:
        """The source in memory as a pool whose rows are (k, t)."""
        T = self.source.shape[1]
        begins = []
        for i in order:
            b = self.blocks[i]
            begins.append((np.arange(b.k0, b.k1)[:, None] * T + self._starts(b)[None]).ravel())
        begin = np.concatenate(begins)
        begin = (rng.permutation(begin) if self.shuffle else begin)[lo:hi]
        return _Pool([], self.source.shape[0] * T, begin, begin % T)

    # -- reading -------------------------------------------------------------------------------------------

    def _fill(self, pool: _Pool, memory: NDArray[np.float32]) -> NDArray[np.float32]:
        if isinstance(self.source, MemorySource):
            return self.source.frames.reshape(-1, *self.source.shape[2:])
        for r, row in pool.reads:
            shape = (r.k1 - r.k0, r.t1 - r.t0)
            out = memory[row : row + math.prod(shape)].reshape(*shape, *self.source.shape[2:])
            self.source.read(r.k0, r.k1, r.t0, r.t1, out)
        return memory

    def _filled(self, pools: Iterator[_Pool]) -> Iterator[tuple[_Pool, NDArray[np.float32]]]:
        """Pools with their frames; the next one is being read while one is in use."""
        memory = [np.empty((0, *self.source.shape[2:]), np.float32) for _ in range(2)]

        def read(pool: _Pool, which: int) -> NDArray[np.float32]:
            if memory[which].shape[0] < pool.rows and pool.reads:
                memory[which] = np.empty((pool.rows, *self.source.shape[2:]), np.float32)
            return self._fill(pool, memory[which])

        with ThreadPoolExecutor(1) as thread:
            ahead: tuple[_Pool, Future[NDArray[np.float32]]] | None = None
            for n, pool in enumerate(pools):
                coming = (pool, thread.submit(read, pool, n % 2))
                if ahead is not None:
                    yield ahead[0], ahead[1].result()
                ahead = coming
            if ahead is not None:
                yield ahead[0], ahead[1].result()

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the present epoch from the present position on; the state is left as it is."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # The loader takes batches from its workers in turn, so after `position` of them worker p mod n is
        # next.
        acting = (worker + self.position) % workers
        seen = len(range(acting, self.position, workers))
        lo, hi = self._worker_share(acting, workers)
        return self._run(self.epoch, lo, hi, seen * self.batch_size)

    def _run(self, epoch: int, lo: int, hi: int, skip: int) -> Iterator[Batch]:
        B, L, left = self.batch_size, self.length, hi - lo - skip
        offsets = np.arange(L)

        def from_skip() -> Iterator[_Pool]:
            nonlocal skip
            for pool in self._pools(epoch, lo, hi):
                n = min(skip, pool.begin.size)
                skip -= n
                if n < pool.begin.size:
                    yield _Pool(pool.reads, pool.rows, pool.begin[n:], pool.time[n:])

        fields = np.empty(0, np.float32)
        phase = np.empty(0, np.float32)
        have = 0
        for pool, frames in self._filled(from_skip()):
            at = 0
            while at < pool.begin.size:
                if have == 0:
                    n = min(B, left)
                    fields = np.empty((n, L, *self.source.shape[2:]), np.float32)
                    phase = np.empty((n, L, 4), np.float32)
                take = slice(at, at + min(len(fields) - have, pool.begin.size - at))
                now = slice(have, have + take.stop - take.start)
                rows = (pool.begin[take, None] + offsets).ravel()
                # mode="clip" spares numpy the copy that it makes to be safe from indices out of range.
                out = fields[now].reshape(-1, *self.source.shape[2:])
                np.take(frames, rows, axis=0, out=out, mode="clip")
                phase[now] = self.source.phase[pool.time[take, None] + offsets]
                at, have = take.stop, now.stop
                if have == len(fields):
                    left -= have
                    have = 0
                    yield Batch(torch.from_numpy(fields), torch.from_numpy(phase))

    def frames(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every frame of the rectangles once, in order: (n, C, *space) and its phase (n, 4). For
        statistics."""
        k_chunk, t_chunk = self.source.chunks
        rows = max(1, min(self._pool_rows(), 2**26 // self._frame_bytes()) // k_chunk)
        step = max(rows // t_chunk, 1) * t_chunk
        for r in self.rectangles:
            k_edges = [r.k0, *range((r.k0 // k_chunk + 1) * k_chunk, r.k1, k_chunk), r.k1]
            t_edges = [r.t0, *range((r.t0 // step + 1) * step, r.t1, step), r.t1]
            for (k0, k1), (a, b) in product(pairwise(k_edges), pairwise(t_edges)):
                out = np.empty((k1 - k0, b - a, *self.source.shape[2:]), np.float32)
                self.source.read(k0, k1, a, b, out)
                for fields in out:
                    yield torch.from_numpy(fields), torch.from_numpy(self.source.phase[a:b])


class WindowLoader:
    """Iterates over `Windows` epoch after epoch, with worker processes if wanted, and remembers where it is.

    Each ``iter`` begins the next epoch; after `load_state_dict` the next one goes on where the state was
    taken. Lightning stores and restores this state in its checkpoints by itself. It is no torch DataLoader,
    so nobody puts a sampler into it.

    Args:
        workers: processes that read and assemble batches. 0 is fastest for one process that computes on the
            same cores: pools are read ahead in a thread in any case.
        pin_memory: hand out page-locked tensors, for copies to a GPU.
    """

    def __init__(self, windows: Windows, workers: int = 0, pin_memory: bool = False) -> None:
        self.windows, self.workers, self.pin_memory = windows, workers, pin_memory
        self._next = (0, 0)  # epoch and position of the next iteration
        self._at = (0, 0)

    @property
    def batch_size(self) -> int:
        return self.windows.batch_size

    def __len__(self) -> int:
        """Batches in a whole epoch, also when one is resumed in the middle."""
        return self.windows.batches

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration begin this epoch."""
        self._next = self._at = (epoch, 0)

    def state_dict(self) -> dict[str, int]:
        epoch, position = self._at
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = self._at = (int(state["epoch"]), int(state["position"]))

    def __iter__(self) -> Iterator[Batch]:
        epoch, position = self._next
        if position >= len(self):
            epoch, position = epoch + 1, 0
        self._at, self._next = (epoch, position), (epoch + 1, 0)
        self.windows.epoch, self.windows.position = epoch, position
        batches: Iterator[Batch] = iter(self.windows)
        if self.workers:
            batches = iter(DataLoader(self.windows, batch_size=None, num_workers=self.workers))
        for batch in batches:
            position += 1
            self._at = (epoch, position)
            yield Batch(*(x.pin_memory() for x in batch)) if self.pin_memory else batch
