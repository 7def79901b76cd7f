"""Ensembles of which only statistics are kept: no member is ever stored.

Each block of members leaves its `Tally` for every variable, cell and lead; completing the ensemble merges the tallies
of a start, one at a time, into means, variances, extremes, quantiles, exceedance probabilities and, where a truth was
given, scores. Disk and memory depend on the number of blocks, not on that of members, and the result not on the
blocks. The sketches' edges come from the first 32 members of each start: whoever needs them first computes and
publishes them, and everyone else reads what was published.

    ens.zarr/                 the statistics, a zarr store like any other; scores.nc beside the arrays
    ens.zarr/.lapse/parts     a tally for each block, with its marker
    ens.zarr/.lapse/truth     the truth at all starts and leads

Members that blow up are left out, over all leads, and counted.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.layout import blank
from ..datasets.shards import Block, ShardedWriter, StoreError
from .job import Job
from .keep import FOLDER, open_lazily
from .online import OnlineScores, states
from .pairs import pair
from .tally import Sketch, Tally

if TYPE_CHECKING:
    from .ensemble import Ensemble

__all__ = ["Statistics"]

PILOT = 32  # members


class Statistics:
    """Statistics over members.

    Arguments:
        shard: members of a block.
        quantiles: between 0 and 1.
        bins: of each cell's sketch, 3 or more; the error of a quantile goes with 8 standard deviations / bins.
        exceed: variable -> thresholds in its units, whose exceedance is counted.
        truth: states at all valid times, over ``time`` or ``(init_time, lead_time)``.
        scored: fingerprint of the truth, of an ensemble that is opened again.
    """

    name = "statistics"

    def __init__(
        self,
        shard: int,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        bins: int = 64,
        exceed: Mapping[str, Sequence[float]] | None = None,
        truth: xr.Dataset | None = None,
        scored: str | None = None,
    ) -> None:
        if not all(0 <= q <= 1 for q in quantiles) or bins < 3:
            raise ValueError(f"found quantiles {tuple(quantiles)} and {bins} bins, wanted 0 to 1, and 3 bins or more")
        self.shard, self.bins = shard, bins
        self.quantiles = [float(q) for q in quantiles]
        self.exceed = {str(v): [float(t) for t in np.atleast_1d(np.asarray(ts))] for v, ts in (exceed or {}).items()}
        self.truth, self.scored = truth, scored

    @property
    def options(self) -> dict[str, Any]:
        return {"shard": self.shard, "quantiles": self.quantiles, "bins": self.bins, "exceed": self.exceed,
                "scored": self.scored}  # fmt: skip

    def home(self, path: Path) -> Path:
        return path / FOLDER / "parts"

    def layout(self, job: Job) -> tuple[xr.Dataset, dict[str, int], dict[str, int]]:
        spec = job.model.spec
        if unknown := sorted(set(self.exceed) - set(spec.names)):
            raise ValueError(f"exceed: found variables {unknown}, wanted some of {', '.join(spec.names)}")
        starts, groups = len(job.positions), -(-job.members // self.shard)
        data: dict[str, Any] = {}
        for v in spec.names:
            empty = Tally.empty((1, *[1] * len(spec.grid.shape)), self.bins, 1)
            for name, a in empty.arrays().items():
                dims, shape = self._dims(v, name, job)
                if 0 not in shape and (self.truth is not None or self.scored or name in _ALWAYS):
                    data[f"{v}_{name}"] = (("init_time", "group", *dims), blank((starts, groups, *shape), a.dtype))
        for name in ("members", "blown_up"):
            data[name] = (("init_time", "group"), blank((starts, groups), np.int32))
        given = job.coordinates()
        coords = {k: given[k] for k in ("init_time", "lead_time", "valid_time", *spec.grid.names)}
        template = xr.Dataset(data, {**coords, "group": np.arange(groups)}, job.attrs())
        template["lead_time"].encoding = dict(job.leads.encoding)
        return template, {"init_time": 1, "group": 1}, {"lead_time": 1}

    def identity(self, job: Job) -> dict[str, Any]:
        if self.truth is not None and self.scored is None:
            pairs = pair(job.template(), self.truth, spec=job.model.spec)
            digest = hashlib.sha256()
            for i in range(len(job.positions)):
                for v in job.model.spec.names:
                    digest.update(np.ascontiguousarray(states(pairs, v, i), np.float32).tobytes())
            self.scored = digest.hexdigest()
        return {**job.identity, "keep": self.name, **self.options}

    def prepare(self, ensemble: "Ensemble") -> None:
        if self.truth is None:
            return
        job = ensemble.job
        spec = job.model.spec
        pairs = pair(job.template(), self.truth, spec=spec)
        template = job.template().isel(member=0, drop=True)[list(spec.names)]
        path = ensemble.path / FOLDER / "truth"
        writer = ShardedWriter.create(
            path, template, shards={"init_time": 1}, identity={"truth": self.scored}, resume=True
        )
        for block in writer.missing():
            index = block.region["init_time"].start
            writer.write({v: states(pairs, v, index)[None].astype(np.float32) for v in spec.names}, block)
        writer.finalise()

    def compute(self, ensemble: "Ensemble", block: Block) -> dict[str, NDArray[Any]]:
        job = ensemble.job
        spec, index, group = job.model.spec, block.region["init_time"].start, block.region["group"].start
        sketches = self._sketches(ensemble, index)
        truth = self._truth(ensemble)
        states = None if truth is None else truth[list(spec.names)].isel(init_time=index).load()
        area = spec.grid.area_weights().numpy()
        weights = {v: np.where(spec.masks.get(v, True), area, 0.0) for v in spec.names}
        shape = (job.steps, *spec.grid.shape)
        tallies = {v: Tally.empty(shape, self.bins, len(self.exceed.get(v, ()))) for v in spec.names}
        first = group * self.shard
        members = blown = 0
        for a, b in job.batches(first, min(first + self.shard, job.members)):
            arrays = job.compute(index, a, b)
            alive = arrays["valid"][0] == 1
            members, blown = members + int(alive.sum()), blown + int((~alive).sum())
            for v in spec.names:
                x = arrays[v][0] if alive.all() else arrays[v][0][alive]
                y = None if states is None else states[v].values
                more = Tally.of(x, sketches[v], self.exceed.get(v, ()), y, weights[v])
                tallies[v] = tallies[v].merge(more)
        out = {f"{v}_{n}": a[None, None] for v in spec.names for n, a in tallies[v].arrays().items()}
        out |= {"members": np.array([[members]], np.int32), "blown_up": np.array([[blown]], np.int32)}
        return {n: out[n] for n in ensemble.writer.plan.variables}

    def complete(self, ensemble: "Ensemble") -> None:
        job, path = ensemble.job, ensemble.path
        spec, stored = job.model.spec, open_lazily(self.home(path), job, chunks=None)
        made = path / FOLDER / "result"
        shutil.rmtree(made, ignore_errors=True)
        template = self._template(job, dict(stored.attrs))
        writer = ShardedWriter.create(
            made, template, shards={"init_time": 1}, chunks={"lead_time": 1}, identity={"members": job.members}
        )
        truth = self._truth(ensemble)
        pairs = None if truth is None else pair(job.template(), truth, spec=spec)
        scores = None if pairs is None else OnlineScores(pairs, job.members)
        for block in writer.blocks():
            i = block.region["init_time"].start
            sketches = self._sketches(ensemble, i)
            out: dict[str, NDArray[Any]] = {}
            for j, v in enumerate(spec.names):
                tally = self._merged(stored, v, i, job)
                out |= {f"{v}_{n}": a[None].astype(np.float32) for n, a in self._read(v, tally, sketches[v]).items()}
                if scores is not None:
                    scores.add(j, i, tally, sketches[v])
            out["members_used"] = stored["members"].isel(init_time=[i]).sum("group").values.astype(np.int32)
            out["blown_up"] = stored["blown_up"].isel(init_time=[i]).sum("group").values.astype(np.int32)
            writer.write(out, block)
        writer.finalise()
        for child in sorted(made.iterdir(), key=lambda f: f.name == "zarr.json"):  # what announces the rest comes last
            _replace(child, path / child.name)
        shutil.rmtree(made)
        if scores is not None:
            scores.write(path / "scores.nc")

    def open(self, ensemble: "Ensemble") -> xr.Dataset:
        return open_lazily(ensemble.path, ensemble.job)

    def _dims(self, v: str, name: str, job: Job) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Dimensions and shape of one array of a tally."""
        space, shape = job.model.spec.grid.names, job.model.spec.grid.shape
        if name in ("drift", "drift_square"):
            return ("lead_time",), (job.steps,)
        if name == "counts":
            return ("lead_time", "bin", *space), (job.steps, self.bins, *shape)
        if name == "above":
            thresholds = len(self.exceed.get(v, ()))
            return (f"{v}_threshold", "lead_time", *space), (thresholds, job.steps, *shape)
        return ("lead_time", *space), (job.steps, *shape)

    def _merged(self, stored: xr.Dataset, v: str, index: int, job: Job) -> Tally:
        """The tally of all members of a start, one block in memory at a time."""
        total = Tally.empty((job.steps, *job.model.spec.grid.shape), self.bins, len(self.exceed.get(v, ())))
        for group in range(stored.sizes["group"]):
            at = stored.isel(init_time=index, group=group)
            arrays = {n: at[f"{v}_{n}"].values if f"{v}_{n}" in at else a for n, a in total.arrays().items()}
            total = total.merge(Tally(n=int(at["members"]), **arrays))
        return total

    def _read(self, v: str, tally: Tally, sketch: Sketch) -> dict[str, NDArray[Any]]:
        out = {"mean": tally.mean, "variance": tally.variance, "minimum": tally.least, "maximum": tally.most}
        if not tally.n:
            out = {n: np.full(a.shape, np.nan) for n, a in out.items()}
        if self.quantiles:
            found = [tally.quantile(p, sketch) for p in self.quantiles]
            out["quantile"], out["quantile_error"] = (np.stack(a) for a in zip(*found, strict=True))
        if v in self.exceed:
            out["exceedance"] = tally.above / max(tally.n, 1)
        empty = ~np.isfinite(out["mean"])  # under the mask, where counts would look like data
        return {n: np.where(empty, np.nan, a) for n, a in out.items()}

    def _template(self, job: Job, attrs: dict[str, Any]) -> xr.Dataset:
        """The statistics without their numbers."""
        spec, starts = job.model.spec, len(job.positions)
        space, shape = ("lead_time", *spec.grid.names), (job.steps, *spec.grid.shape)
        given = job.coordinates()
        coords = {k: given[k] for k in ("init_time", "lead_time", "valid_time", *spec.grid.names)}
        if self.quantiles:
            coords["quantile"] = ("quantile", self.quantiles, {"long_name": "quantile level", "units": "1"})
        data: dict[str, Any] = {}
        for v in spec.variables:
            named = {k: x for k, x in (("standard_name", v.standard_name), ("units", v.units)) if x is not None}
            title = v.long_name or v.name
            for name, method in _METHODS.items():
                about = {**named, "long_name": f"{name} of {title} over members", "cell_methods": method}
                if name == "variance" and v.units not in (None, "1"):
                    about["units"] = f"({v.units})2"
                data[f"{v.name}_{name}"] = (("init_time", *space), blank((starts, *shape)), about)
            levels = len(self.quantiles)
            if levels:
                dims, sizes = ("init_time", "quantile", *space), (starts, levels, *shape)
                about = {**named, "long_name": f"quantile of {title} over members"}
                bound = {"units": named.get("units", "1"), "long_name": f"largest error of the quantile of {title}"}
                data[f"{v.name}_quantile"] = (dims, blank(sizes), about)
                data[f"{v.name}_quantile_error"] = (dims, blank(sizes), bound)
            if v.name in self.exceed:
                d = f"{v.name}_threshold"
                coords[d] = (d, self.exceed[v.name], {**named, "long_name": f"threshold of {title}"})
                about = {"units": "1", "long_name": f"share of members with {title} above the threshold"}
                sizes = (starts, len(self.exceed[v.name]), *shape)
                data[f"{v.name}_exceedance"] = (("init_time", d, *space), blank(sizes), about)
        for name, title in (("members_used", "members in the statistics"), ("blown_up", "members left out")):
            data[name] = (("init_time",), blank((starts,), np.int32), {"units": "1", "long_name": title})
        out = xr.Dataset(data, coords, {**attrs, "title": str(attrs["title"]).replace("forecast", "statistics")})
        out["lead_time"].encoding = dict(job.leads.encoding)
        return out

    def _truth(self, ensemble: "Ensemble") -> xr.Dataset | None:
        """The stored truth, lazily."""
        if self.scored is None:
            return None
        return open_lazily(ensemble.path / FOLDER / "truth", ensemble.job, chunks=None)

    def _sketches(self, ensemble: "Ensemble", index: int) -> dict[str, Sketch]:
        """The sketches of a start, published once for all processes."""
        job, place = ensemble.job, ensemble.path / FOLDER / f"pilot.{index}.npy"
        if not place.exists():
            infant = place.with_name(f"{place.name}.{os.getpid()}.partial.npy")
            try:
                np.save(infant, _pilot(job, index))
                os.link(infant, place)
            except FileExistsError:  # another process was first, and what it published counts
                pass
            except OSError as error:
                raise StoreError(f"writing {place} failed: {error.strerror}. Free the disk, then run again") from error
            finally:
                infant.unlink(missing_ok=True)
        table = np.load(place, allow_pickle=False)
        return {v: Sketch(table[0, c], table[1, c], self.bins) for c, v in enumerate(job.model.spec.names)}


_METHODS = {
    "mean": "realization: mean", "variance": "realization: variance", "minimum": "realization: minimum",
    "maximum": "realization: maximum",
}  # fmt: skip
_ALWAYS = ("mean", "squares", "least", "most", "counts", "above")  # the rest of a tally needs a truth


def _pilot(job: Job, index: int) -> NDArray[np.float32]:
    """Centre and scale ``(2, C, L, *space)`` of the first members of a start."""
    parts = [job.compute(index, a, b) for a, b in job.batches(0, PILOT)]
    alive = np.concatenate([p["valid"][0] for p in parts]) == 1
    out = np.empty((2, *job.model.spec.shape[:1], job.steps, *job.model.spec.grid.shape), np.float32)
    for c, variable in enumerate(job.model.spec.variables):
        x = np.concatenate([p[variable.name][0] for p in parts])[alive]
        spread = variable.std or 1.0
        if not len(x):  # all blew up: the climate is as good a guess as any
            out[0, c], out[1, c] = variable.mean or 0.0, spread
            continue
        out[0, c] = x.mean(axis=0, dtype=np.float64)
        out[1, c] = np.maximum(x.std(axis=0, dtype=np.float64), 1e-6 * spread)
    out[0], out[1] = np.nan_to_num(out[0]), np.where(out[1] > 0, out[1], 1.0)  # under the mask
    return out


def _replace(source: Path, target: Path) -> None:
    """Move a file or a folder over another."""
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)
