"""Windows against brute force: the exact set, the exact content, the exact order after a resume."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.datasets.shards import StoreError
from lapse.datasets.spec import FieldSpec, Variable
from lapse.datasets.splits import Rectangle, split, stretches
from lapse.datasets.store import MemorySource, StoreSource, convert
from lapse.datasets.windows import WindowLoader, Windows
from lapse.physics.grid import Grid


def frames(K: int, T: int, C: int = 1, space: tuple[int, ...] = (3,)) -> np.ndarray:
    """u[k, t, c, x] = 1000 k + t + c/8 + x/64: every number tells where it came from, exactly."""
    k, t, c = np.arange(K), np.arange(T), np.arange(C)
    x = np.arange(np.prod(space)).reshape(space)
    u = 1000 * k[:, None, None] + t[:, None] + c / 8
    return (u.reshape(K, T, C, *(1,) * len(space)) + x / 64).astype(np.float32)


class Chunked:
    """A source that counts what is decompressed: every chunk that a read touches, as zarr would."""

    def __init__(self, u: np.ndarray, chunks: tuple[int, int], breaks: tuple[int, ...] = ()) -> None:
        self.u, self.chunks, self.breaks = u, chunks, breaks
        self.shape = u.shape
        self.phase = np.stack([np.arange(u.shape[1])] * 4, axis=-1).astype(np.float32)
        self.read_chunks: list[tuple[int, int]] = []

    def read(self, k0: int, k1: int, t0: int, t1: int, out: np.ndarray) -> None:
        a, b = self.chunks
        self.read_chunks += itertools.product(range(k0 // a, -(-k1 // a)), range(t0 // b, -(-t1 // b)))
        out[...] = self.u[k0:k1, t0:t1]


def in_memory(u: np.ndarray, breaks: tuple[int, ...] = ()) -> MemorySource:
    return MemorySource(u, Chunked(u, (1, 1)).phase, breaks)


def starts(batches: Any, length: int) -> list[tuple[int, int]]:
    """(k, t) of every window, after checking that it is L consecutive frames with their phases."""
    found = []
    for fields, phase in batches:
        assert fields.dtype == phase.dtype == torch.float32
        first = fields[:, :1, :1, :1]
        t = torch.arange(length).reshape(1, -1, 1, 1)
        x = torch.arange(fields.shape[-1]).reshape(1, 1, 1, -1) / 64
        c = torch.arange(fields.shape[2]).reshape(1, 1, -1, 1) / 8
        assert torch.equal(fields, first + t + c + x)
        begin = first.flatten()
        k = torch.div(begin, 1000, rounding_mode="floor")
        assert torch.equal(phase, ((begin - 1000 * k)[:, None, None] + torch.arange(length)[:, None]).expand(-1, -1, 4))
        found += [(int(a), int(b - 1000 * a)) for a, b in zip(k, begin, strict=True)]
    return found


def expected(rectangles: list[Rectangle], length: int, stride: int = 1) -> list[tuple[int, int]]:
    return [
        (k, t)
        for r in rectangles
        for k in range(r.k0, r.k1)
        for t in range(r.t0, r.t1 - length + 1, stride)
    ]


@settings(max_examples=60)
@given(
    K=st.integers(1, 5),
    T=st.integers(4, 40),
    chunks=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    length=st.integers(1, 4),
    batch=st.integers(1, 7),
    stride=st.integers(1, 3),
    world=st.integers(1, 3),
    shuffle=st.booleans(),
    memory=st.booleans(),
    rows=st.integers(1, 60),
    data=st.data(),
)
def test_every_window_once_and_ranks_share_none(
    K: int, T: int, chunks: tuple[int, int], length: int, batch: int, stride: int, world: int,
    shuffle: bool, memory: bool, rows: int, data: st.DataObject,
) -> None:  # fmt: skip
    a = data.draw(st.integers(0, T - length))
    b = data.draw(st.integers(a + length, T))
    rectangles = [Rectangle(0, K, a, b)]
    if b + length <= T:
        rectangles.append(Rectangle(0, 1, b, T))
    u = frames(K, T)
    source: Any = in_memory(u) if memory else Chunked(u, chunks)
    found: list[tuple[int, int]] = []
    for rank in range(world):
        w = Windows(
            source, rectangles, length, batch, stride=stride, shuffle=shuffle, rank=rank, world=world,
            buffer=2 * 12 * rows,
        )  # fmt: skip
        batches = list(w)
        assert len(batches) == w.batches
        assert all(x.fields.shape[0] == batch for x in batches[:-1])
        found += starts(batches, length)
    assert sorted(found) == sorted(expected(rectangles, length, stride))  # all, none twice


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_drop_last_gives_every_rank_as_many_full_batches(memory: bool, world: int) -> None:
    u = frames(3, 31)
    source: Any = in_memory(u) if memory else Chunked(u, (1, 4))
    found, counts, left_out = [], [], set()
    for epoch in range(3):
        seen = []
        for rank in range(world):
            w = Windows(
                source, [Rectangle(0, 3, 0, 31)], 3, 5, shuffle=True, drop_last=True, rank=rank, world=world,
                buffer=2 * 12 * 40,
            )  # fmt: skip
            w.epoch = epoch
            batches = list(w)
            assert all(b.fields.shape[0] == 5 for b in batches)
            counts.append(len(batches))
            seen += starts(batches, 3)
        assert len(set(seen)) == len(seen)
        missing = set(expected([Rectangle(0, 3, 0, 31)], 3)) - set(seen)
        assert len(missing) == 87 % (5 * world)
        left_out.add(frozenset(missing))
        found.append(seen)
    assert set(counts) == {87 // (5 * world)}
    assert found[0] != found[1] != found[2]
    assert len(left_out) > 1  # not always the same windows


def test_the_order_is_shuffled_and_repeats_with_the_seed() -> None:
    source = Chunked(frames(20, 40), (1, 10))
    everything = [Rectangle(0, 20, 0, 40)]

    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        w = Windows(source, everything, 2, 13, shuffle=True, seed=seed, buffer=2 * 12 * 320)
        w.epoch = epoch
        return starts(w, 2)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0) != order(0, 1) != order(0, 0)
    # Neighbours in the order are unrelated: for 20 trajectories the chance of the same one is about 1/8 in a pool of 8.
    k = np.array([w[0] for w in order(0, 0)])
    assert (k[1:] == k[:-1]).mean() < 0.25


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_same_set_in_their_own_order(workers: int, tmp_path: Path) -> None:
    source = in_memory(frames(2, 30))
    windows = Windows(source, [Rectangle(0, 2, 0, 30)], 3, 4, shuffle=True)
    here = starts(WindowLoader(windows), 3)
    there = starts(WindowLoader(windows, workers=workers), 3)
    assert sorted(here) == sorted(there) == sorted(expected(windows.rectangles, 3))
    assert there == starts(WindowLoader(windows, workers=workers), 3)
    assert (here == there) == (workers == 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("memory", [True, False])
def test_a_resume_gives_the_identical_remainder(memory: bool, workers: int) -> None:
    u = frames(3, 33)
    source: Any = in_memory(u) if memory else Chunked(u, (1, 4))

    def loader() -> WindowLoader:
        w = Windows(source, [Rectangle(0, 3, 0, 33)], 4, 5, shuffle=True, seed=7, buffer=2 * 12 * 40)
        return WindowLoader(w, workers=workers)

    whole = loader()
    epochs = [[b.fields for b in whole] for _ in range(3)]
    for stop in (1, 2, 5, len(whole) - 1, len(whole)) if workers == 0 else (3,):
        killed = loader()
        list(killed)
        for _ in zip(range(stop), killed, strict=False):
            pass
        resumed = loader()
        resumed.load_state_dict(killed.state_dict())
        assert len(resumed) == len(whole)
        rest = [b.fields for b in resumed]
        wanted = epochs[1][stop:] or epochs[2]  # the state at the end of an epoch is the beginning of the next
        assert len(rest) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(rest, wanted, strict=True))


def test_abandoned_epochs_are_not_repeated() -> None:
    loader = WindowLoader(Windows(in_memory(frames(2, 20)), [Rectangle(0, 2, 0, 20)], 2, 4, shuffle=True))
    first = next(iter(loader)).fields
    second = next(iter(loader)).fields
    assert not torch.equal(first, second)
    loader.set_epoch(0)
    assert torch.equal(next(iter(loader)).fields, first)


def test_only_the_needed_chunks_are_read() -> None:
    """Each chunk once, and again only where a block's halo reaches into the next."""
    source = Chunked(frames(1, 640), (1, 10))
    w = Windows(source, [Rectangle(0, 1, 0, 640)], 5, 8, shuffle=True)
    list(w)
    assert len(source.read_chunks) == 64 + 3  # 4 blocks of 16 chunks, 3 of them with a halo
    source.read_chunks.clear()
    list(Windows(source, [Rectangle(0, 1, 200, 260)], 5, 8))
    assert sorted(set(source.read_chunks)) == [(0, c) for c in range(20, 26)]


def test_a_resume_does_not_read_what_was_seen() -> None:
    source = Chunked(frames(1, 640), (1, 10))
    w = Windows(source, [Rectangle(0, 1, 0, 640)], 5, 8, shuffle=True, buffer=2 * 12 * 200)
    w.position = w.batches - 1
    list(w)
    assert len(source.read_chunks) <= 8 * 3  # the last pool: 8 blocks of 2 chunks and a halo, of 95 reads in all


def test_memory_stays_within_two_pools() -> None:
    source = Chunked(frames(1, 4000), (1, 10))
    w = Windows(source, [Rectangle(0, 1, 0, 4000)], 5, 8, shuffle=True, buffer=2 * 12 * 500)
    assert all(pool.rows <= 500 for pool in w._pools(0, 0, w.windows))


def test_split_in_time_and_by_trajectory() -> None:
    source = in_memory(frames(4, 100))
    by_time = split(source, (0.7, 0.1, 0.2), by="time")
    assert by_time == {
        "train": [Rectangle(0, 4, 0, 70)], "val": [Rectangle(0, 4, 70, 80)], "test": [Rectangle(0, 4, 80, 100)],
    }  # fmt: skip
    by_trajectory = split(source, (0.5, 0.25, 0.25), by="trajectory")
    assert by_trajectory["train"] == [Rectangle(0, 2, 0, 100)]
    assert split(source, (0.7, 0.0, 0.3), by="time")["val"] == []
    assert split(in_memory(frames(20, 5)), (0.9, 0.05, 0.05))["test"] == [Rectangle(19, 20, 0, 5)]
    with pytest.raises(ValueError, match="add up to 1"):
        split(source, (0.7, 0.2, 0.2))
    with pytest.raises(ValueError, match="at least 3"):
        split(in_memory(frames(2, 9)), by="trajectory")


@given(
    T=st.integers(3, 60),
    cuts=st.lists(st.integers(1, 59), max_size=4),
    f=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5)),
    by=st.sampled_from(["time", "trajectory"]),
)
def test_splits_share_no_frame_and_lose_none(T: int, cuts: list[int], f: tuple[int, ...], by: Any) -> None:
    source = in_memory(frames(5, T), tuple(sorted({c for c in cuts if c < T})))
    fractions: Any = tuple(x / sum(f) for x in f)
    cells = [
        (k, t)
        for rectangles in split(source, fractions, by=by).values()
        for r in rectangles
        for k in range(r.k0, r.k1)
        for t in range(r.t0, r.t1)
    ]
    assert sorted(cells) == [(k, t) for k in range(5) for t in range(T)]


def test_no_window_crosses_a_gap_in_time() -> None:
    source = in_memory(frames(1, 20), breaks=(6, 9))
    assert stretches(source) == [(0, 6), (6, 9), (9, 20)]
    found = starts(Windows(source, split(source, (1.0, 0.0, 0.0))["train"], 4, 4), 4)
    assert found == [(0, t) for t in (0, 1, 2, *range(9, 17))]


def test_too_long_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="longest run has 7 frames"):
        Windows(in_memory(frames(2, 7)), [Rectangle(0, 2, 0, 7)], 8, 1)


def spec_and_data(K: int = 4, T: int = 24) -> tuple[FieldSpec, xr.Dataset]:
    grid = Grid.periodic_box((4, 6))
    mask = np.ones((4, 6), bool)
    mask[1, 2] = False
    spec = FieldSpec((Variable("b", "K", mean=2.5), Variable("a", "m s-1")), grid, 0.5, "s", masks={"b": mask})
    u = frames(K, T, 2, (4, 6))
    u[:, :, 0, 1, 2] = np.nan
    coords = {"time": ("time", 0.5 * np.arange(T), {"units": "s"}), "y": list(grid.axes[0].coordinates),
              "x": list(grid.axes[1].coordinates)}  # fmt: skip
    dims = ("trajectory", "time", "y", "x")
    ds = xr.Dataset({"a": (dims, u[:, :, 1], {"units": "m s-1"}), "b": (dims, u[:, :, 0], {"units": "K"})}, coords)
    return spec, ds


@pytest.mark.parametrize("lead", [True, False])
def test_store_and_memory_hold_the_same_frames(tmp_path: Path, lead: bool) -> None:
    spec, ds = spec_and_data()
    ds = ds if lead else ds.isel(trajectory=0, drop=True)
    path = convert(ds, tmp_path / "a.zarr", spec, chunk=5, shard=10)
    store, memory = StoreSource(path, spec), MemorySource.of(ds, spec)
    assert store.shape == memory.shape == (4 if lead else 1, 24, 2, 4, 6)
    assert store.chunks == (1, 5)
    out = np.empty(store.shape, np.float32)
    store.read(0, store.shape[0], 0, 24, out)
    np.testing.assert_array_equal(out, memory.frames)
    assert (out[:, :, 0, 1, 2] == 2.5).all()  # the mean, under the mask
    xr.testing.assert_equal(xr.open_zarr(path).load(), ds)
    for shuffle in (False, True):
        kw: Any = {"length": 3, "batch_size": 100, "shuffle": shuffle}
        a = Windows(store, split(store, (0.5, 0, 0.5), by="time")["train"], **kw)
        b = Windows(memory, split(memory, (0.5, 0, 0.5), by="time")["train"], **kw)
        x, y = next(iter(a)).fields, next(iter(b)).fields
        assert sorted(x.flatten(1).tolist()) == sorted(y.flatten(1).tolist())


def test_stores_are_opened_in_the_worker(tmp_path: Path) -> None:
    spec, ds = spec_and_data()
    store = StoreSource(convert(ds, tmp_path / "a.zarr", spec, chunk=5), spec)
    windows = Windows(store, split(store, (1, 0, 0), by="time")["train"], 3, 8, shuffle=True)
    assert sum(b.fields.shape[0] for b in WindowLoader(windows, workers=2)) == 4 * 22
    assert "_arrays" not in store.__getstate__()


def test_what_is_not_plain_is_refused_with_every_reason(tmp_path: Path) -> None:
    spec, ds = spec_and_data()
    bad = ds.isel(y=slice(None, None, -1))
    bad["a"] = bad["a"].assign_attrs(units="km/h")
    bad["b"] = (bad["b"].fillna(0) * 4).astype("int16").assign_attrs(units="K")
    bad.to_zarr(tmp_path / "bad.zarr", zarr_format=2)
    with pytest.raises(StoreError, match="km/h") as e:
        StoreSource(tmp_path / "bad.zarr", spec)
    assert "int16" in str(e.value) and "convert" in str(e.value)
    flipped = ds.isel(y=slice(None, None, -1))
    flipped.to_zarr(tmp_path / "flipped.zarr")
    with pytest.raises(StoreError, match="y: found coordinates that differ"):
        StoreSource(tmp_path / "flipped.zarr", spec)
    with pytest.raises(StoreError, match="not a zarr group"):
        StoreSource(tmp_path / "nothing.zarr", spec)


def test_zarr_v2_is_read_too(tmp_path: Path) -> None:
    spec, ds = spec_and_data()
    ds.to_zarr(tmp_path / "v2.zarr", zarr_format=2)
    store = StoreSource(tmp_path / "v2.zarr", spec)
    out = np.empty((1, 3, 2, 4, 6), np.float32)
    store.read(2, 3, 5, 8, out)
    np.testing.assert_array_equal(out, MemorySource.of(ds, spec).frames[2:3, 5:8])
