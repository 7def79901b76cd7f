"""A store that several processes fill and that is killed, refused, starved of disk and grown."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from lapse.datasets.layout import StorePlan, differences
from lapse.datasets.shards import Block, ShardedWriter, StoreError, blank


def template(members: int = 5, leads: int = 7) -> xr.Dataset:
    times = np.array("2000-01-01", "M8[ns]") + 6 * np.arange(leads) * np.timedelta64(1, "h")
    return xr.Dataset(
        {
            "u": (("member", "lead", "x"), blank((members, leads, 4)), {"units": "m s-1"}),
            "valid": (("member",), blank((members,), bool)),
            "topography": (("x",), np.arange(4.0), {"units": "m"}),
        },
        {
            "member": np.arange(members),
            "lead": np.arange(leads),
            "valid_time": ("lead", times),
            "weight": ("member", np.arange(members) / 8),
        },
        {"title": "test"},
    )


def truth(block: Block) -> dict[str, np.ndarray]:
    m = np.arange(block.region["member"].start, block.region["member"].stop)
    return {
        "u": (100.0 * m[:, None, None] + 10 * np.arange(7)[:, None] + np.arange(4)).astype("f4"),
        "valid": m % 3 > 0,
    }


def create(path: Path, members: int = 5, **options: Any) -> ShardedWriter:
    options = {"shards": {"member": 2}, "chunks": {"member": 1, "lead": 3}, "identity": {"seed": 1}, **options}
    return ShardedWriter.create(path, template(members), **options)


def fill(writer: ShardedWriter) -> xr.Dataset:
    for block in writer.missing():
        writer.write(truth(block), block)
    writer.finalise()
    return xr.open_zarr(writer.path).load()


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.zarr")
    empty = xr.open_zarr(tmp_path / "a.zarr")
    assert empty.u.isnull().all()  # not zeros: what is not written yet must not look like data
    ds = fill(writer)
    want = truth(Block((0,), {"member": slice(0, 5)}))
    np.testing.assert_array_equal(ds.u, want["u"])
    np.testing.assert_array_equal(ds.valid, want["valid"])
    for name in ("topography", "valid_time", "weight", "member"):
        xr.testing.assert_identical(ds[name].drop_vars(ds[name].coords), template()[name].drop_vars(ds[name].coords))
    assert ds.u.attrs["units"] == "m s-1" and ds.attrs["title"] == "test"
    array = zarr.open_array(tmp_path / "a.zarr" / "u")
    assert array.shards == (2, 9, 4) and array.chunks == (1, 3, 4)
    assert len(list((tmp_path / "a.zarr" / "u" / "c").rglob("*"))) == 3 + 3 + 3  # 3 shard files and their folders


def test_order_and_writer_do_not_matter(tmp_path: Path) -> None:
    a, b = create(tmp_path / "a.zarr"), create(tmp_path / "b.zarr")
    fill(a)
    for block in reversed(b.blocks()):
        other = pickle.loads(pickle.dumps(ShardedWriter.open(tmp_path / "b.zarr")))
        other.write(truth(block), block)
    b.finalise()
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


def test_parts_divide_the_work(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.zarr", members=11)
    parts = [writer.part(i, 3) for i in range(3)]
    assert sorted(b.index for p in parts for b in p) == [b.index for b in writer.blocks()]
    writer.write(truth(parts[1][0]), parts[1][0])
    assert writer.part(1, 3) == parts[1][1:] and writer.part(0, 3) == parts[0]
    with pytest.raises(ValueError, match="part 3 of 3"):
        writer.part(3, 3)


@pytest.mark.parametrize(
    "region",
    [slice(0, 1), slice(1, 3), slice(0, 3), slice(4, 6), slice(2, 2), slice(0, 4, 2), slice(3, None), slice(-2, None)],
)
def test_regions_that_cut_a_block_are_refused(tmp_path: Path, region: slice) -> None:
    writer = create(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="whole blocks"):
        writer.write({}, {"member": region})
    assert len(writer.missing()) == 3


def test_regions_of_several_blocks_are_taken(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.zarr")
    values = truth(Block((), {"member": slice(2, 5)}))
    ds = xr.Dataset({n: (template()[n].dims, v) for n, v in values.items()})
    writer.write(ds.transpose("x", "lead", "member"), {"member": slice(2, None)})
    assert [b.index for b in writer.missing()] == [(0,)]
    np.testing.assert_array_equal(xr.open_zarr(writer.path).u[2:], values["u"])


def test_wrong_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.zarr")
    block = writer.missing()[0]
    good = truth(block)
    with pytest.raises(ValueError, match=r"'u': found shape \(2, 7, 3\), wanted \(2, 7, 4\)"):
        writer.write({**good, "u": good["u"][..., :3]}, block)
    with pytest.raises(ValueError, match=r"found variables \['u'\]"):
        writer.write({"u": good["u"]}, block)
    assert writer.missing()[0] == block and xr.open_zarr(writer.path).u.isnull().all()


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    shards=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    a=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    b=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_blocks_tile_the_array_and_regions_are_unions_of_them(
    sizes: tuple[int, int], shards: tuple[int, int], a: tuple[int, int], b: tuple[int, int]
) -> None:
    ds = xr.Dataset({"u": (("i", "j"), blank(sizes))})
    plan = StorePlan.of(ds, {"i": shards[0], "j": shards[1]}, {})
    count = np.zeros(sizes, int)
    for block in plan.blocks():
        count[block.region["i"], block.region["j"]] += 1
    assert (count == 1).all()
    region = {"i": slice(a[0], b[0]), "j": slice(a[1], b[1])}
    cells = set(itertools.product(range(a[0], min(b[0], sizes[0])), range(a[1], min(b[1], sizes[1]))))
    inside = [
        k for k in plan.blocks()
        if {(i, j) for i in range(k.region["i"].start, k.region["i"].stop)
            for j in range(k.region["j"].start, k.region["j"].stop)} <= cells
    ]  # fmt: skip
    whole = sum(k.length("i") * k.length("j") for k in inside) == len(cells) > 0
    if whole and b[0] <= sizes[0] and b[1] <= sizes[1]:
        assert plan.covered(region) == inside
    else:
        with pytest.raises(ValueError, match="whole blocks"):
            plan.covered(region)


def test_layouts_that_cannot_be_are_refused() -> None:
    ds = template()
    with pytest.raises(ValueError, match=r"found shards of 2 and chunks of 3 along 'member', wanted 3"):
        StorePlan.of(ds, {"member": 2}, {"member": 3})
    with pytest.raises(ValueError, match="several writers"):
        StorePlan.of(ds, {"member": 2, "lead": 3}, {})
    with pytest.raises(ValueError, match="found dimensions"):
        StorePlan.of(ds, {"number": 2}, {})
    plan = StorePlan.of(ds, {"member": 2}, {})
    assert plan.files == 6 and plan.bytes == 5 * 7 * 4 * 4 + 5


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    before = fill(create(tmp_path / "a.zarr"))
    with pytest.raises(StoreError, match=r"exists\. Pass resume=True"):
        create(tmp_path / "a.zarr")
    again = create(tmp_path / "a.zarr", resume=True)
    assert again.missing() == [] and again.complete
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "a.zarr").load(), before)


def test_a_resume_of_something_else_is_refused_with_the_differences(tmp_path: Path) -> None:
    create(tmp_path / "a.zarr")
    with pytest.raises(StoreError) as e:
        create(tmp_path / "a.zarr", resume=True, identity={"seed": 2, "spec": "abc"}, chunks={"member": 1})
    text = str(e.value)
    assert "identity.seed: the store has 1, asked for 2" in text
    assert "identity.spec: the store has '(absent)', asked for 'abc'" in text
    assert "layout.variables.u.chunks: the store has [1, 3, 4], asked for [1, 7, 4]" in text
    assert "topography" not in text  # what agrees is not listed
    with pytest.raises(StoreError, match=r"layout\.sizes\.member: the store has 5, asked for 6"):
        create(tmp_path / "a.zarr", 6, resume=True)
    other = template()
    other["topography"] = other.topography + 1
    with pytest.raises(StoreError, match=r"layout\.static\.topography"):
        ShardedWriter.create(
            tmp_path / "a.zarr", other, shards={"member": 2}, chunks={"member": 1, "lead": 3}, identity={"seed": 1},
            resume=True,
        )  # fmt: skip
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []


def test_what_lapse_did_not_make_is_refused(tmp_path: Path) -> None:
    template().to_zarr(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        create(tmp_path / "foreign.zarr", resume=True)
    create(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        ShardedWriter.open(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "manifest.json").write_text(json.dumps({"format": "lapse-store 9"}))
    with pytest.raises(StoreError, match="lapse-store 9"):
        ShardedWriter.open(tmp_path / "a.zarr")


@pytest.mark.parametrize("before", [4, 5])
def test_growing_keeps_what_is_there(tmp_path: Path, before: int) -> None:
    grown = create(tmp_path / "a.zarr", before)
    old = fill(grown)
    shards = {n: b for n, b in files(tmp_path / "a.zarr").items() if n.startswith("u/c")}
    grown = create(tmp_path / "a.zarr", 9, resume=True, grow=("member",))
    assert not grown.complete
    assert [b.index for b in grown.missing()] == [(i,) for i in range(before // 2, 5)]
    now = fill(grown)
    xr.testing.assert_identical(now.isel(member=slice(before)), old)
    whole = fill(create(tmp_path / "b.zarr", 9))
    xr.testing.assert_identical(now, whole)
    after = files(tmp_path / "a.zarr")
    assert all(after[f"u/c/{i}/0/0"] == shards[f"u/c/{i}/0/0"] for i in range(before // 2))


def test_a_store_with_holes_is_not_finalised(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.zarr")
    writer.write(truth(writer.blocks()[1]), writer.blocks()[1])
    with pytest.raises(StoreError, match=r"found 2 of 3 blocks missing \(0, 2"):
        writer.finalise()


def test_a_shard_of_fill_values_counts_as_written(tmp_path: Path) -> None:
    """zarr does not write it, so that only the marker can know."""
    writer = create(tmp_path / "a.zarr")
    for block in writer.missing():
        values = truth(block)
        writer.write({**values, "u": np.full_like(values["u"], np.nan)}, block)
    assert not (writer.path / "u" / "c").exists()
    assert writer.missing() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_refusal_of_the_disk_is_clear_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    whole = fill(create(tmp_path / "whole.zarr"))
    writer = create(tmp_path / "a.zarr")
    first, second, _ = writer.blocks()
    writer.write(truth(first), first)
    before = files(tmp_path / "a.zarr")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as m:
        m.setattr("zarr.storage._local._put", full)
        with pytest.raises(StoreError, match=rf"writing block 1 of .*{os.strerror(code)}.*resume"):
            writer.write(truth(second), second)
    assert files(tmp_path / "a.zarr") == before
    with monkeypatch.context() as m:
        m.setattr("lapse.datasets.shards.os.fsync", full)  # the shard arrives, but may not be on the disk
        with pytest.raises(StoreError):
            writer.write(truth(second), second)
    assert [b.index for b in writer.missing()] == [(1,), (2,)]
    xr.testing.assert_identical(fill(create(tmp_path / "a.zarr", resume=True)), whole)


def test_a_path_that_cannot_be_made_is_clear(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"creating .* failed"):
        create(tmp_path / "file" / "a.zarr")
    with pytest.raises(StoreError, match="creating /proc"):
        create(Path("/proc/a.zarr"))


def test_an_interrupted_creation_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr("lapse.datasets.shards._consolidate", lambda path: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".a.zarr.999999.init").mkdir()  # of a killed process, which could not tidy up
    fill(create(tmp_path / "a.zarr"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_shards import create, truth
from pathlib import Path

writer = create(Path({path!r}), 41, resume=True)
print("ready", flush=True)
for block in writer.missing():
    writer.write(truth(block), block)
    time.sleep(0.01)
writer.finalise()
"""


def test_killed_again_and_again_it_becomes_the_same_store(tmp_path: Path) -> None:
    whole = fill(create(tmp_path / "whole.zarr", 41))
    script = tmp_path / "write.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), path=str(tmp_path / "a.zarr")))
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = []
    for wait in (0.05, 0.2):
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done.append(21 - len(ShardedWriter.open(tmp_path / "a.zarr").missing()))
    assert done[0] <= done[1]
    writer = create(tmp_path / "a.zarr", 41, resume=True)
    xr.testing.assert_identical(fill(writer), whole)
    assert files(tmp_path / "a.zarr") == files(tmp_path / "whole.zarr")
