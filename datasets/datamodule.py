"""From a path to batches of training windows, for Lightning.

One spec and one `Normaliser`, fitted on the frames of the training split only, serve train, val, test and predict.
Data that fits in ``memory`` is checked (`datasets.check`) and loaded; a larger plain zarr store is read in
pieces (`store.StoreSource`), and what is neither is made plain once, in ``cache``.

The normaliser is handed to the model, which keeps it: batches are in physical units. Call `setup` yourself to
have `spec` and `normaliser` before there is a model; Lightning's own call then finds everything in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from lightning.pytorch import LightningDataModule
from torch import Tensor

from .check import check
from .normalise import Normaliser
from .open import open_dataset
from .spec import FieldSpec
from .splits import Rectangle, split
from .store import MemorySource, Source, StoreSource, convert, obstacles
from .windows import Batch, WindowLoader, Windows

__all__ = ["FieldData"]


class FieldData(LightningDataModule):
    """Training windows of a dataset.

    Args:
        data: path, glob pattern or list of them (`datasets.open`), or an open Dataset.
        length: frames in a training window; ``eval_length`` in one of val, test and predict.
        batch_size: windows in a batch, on each rank.
        spec: what the data is; inferred if None, with ``infer`` handed to `FieldSpec.infer`.
        fractions, by: the splits, as `splits.split` has them.
        stride: distance of the starts of training windows; ``eval_stride`` of the others (default: as far as they
            are long, so that they do not overlap).
        n_year, n_day, pointwise: climatology of the `Normaliser`.
        memory: bytes (as float32) up to which the data is loaded whole.
        buffer: bytes for reading when it is not.
        cache: where to write a plain store, for data that is too large for memory and not plain.
        workers: processes for each loader; 0 reads ahead in a thread.
        open: options of `open_dataset`.

    Attributes after `setup`:
        spec: with the training range of every variable.
        normaliser: fitted.
        source, splits: the frames, and the rectangles of each split.
    """

    spec: FieldSpec
    normaliser: Normaliser
    source: Source
    splits: dict[str, list[Rectangle]]

    def __init__(
        self,
        data: str | Path | Sequence[str | Path] | xr.Dataset,
        length: int,
        batch_size: int,
        *,
        eval_length: int | None = None,
        spec: FieldSpec | None = None,
        infer: Mapping[str, Any] | None = None,
        open: Mapping[str, Any] | None = None,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        by: Literal["auto", "time", "trajectory"] = "auto",
        stride: int = 1,
        eval_stride: int | None = None,
        n_year: int = 0,
        n_day: int = 0,
        pointwise: bool = False,
        memory: int = 2**31,
        buffer: int = 2**29,
        cache: str | Path | None = None,
        workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data, self.wanted_spec = data, spec
        self.infer_options, self.open_options = dict(infer or {}), dict(open or {})
        self.length, self.batch_size, self.stride = length, batch_size, stride
        self.eval_length = eval_length or length
        self.eval_stride = eval_stride or self.eval_length
        fractions = (fractions[0], fractions[1], fractions[2])  # a list, where it comes from a config
        self.fractions, self.by = fractions, by
        self.climatology = {"n_year": n_year, "n_day": n_day, "pointwise": pointwise}
        self.memory, self.buffer, self.cache = memory, buffer, None if cache is None else Path(cache)
        self.workers, self.pin_memory, self.seed = workers, pin_memory, seed

    def prepare_data(self) -> None:
        """On one process: writes the cache, if this data needs one. A killed conversion goes on."""
        if self.cache is None:
            return
        ds, spec = self._opened()
        if not self._fits(ds, spec) and self._plain_path(spec) is None:
            convert(self._canonical(ds, spec, values=False), self.cache, spec, resume=True)

    def setup(self, stage: str | None = None) -> None:
        """Opens the data, splits it, and fits the normaliser. Does nothing the second time.

        Raises SpecError for data that is not what the spec says, and StoreError for data that fits neither
        into ``memory`` nor can be read in pieces.
        """
        if hasattr(self, "source"):
            return
        ds, spec = self._opened()
        source: Source
        if self._fits(ds, spec):
            source = MemorySource.of(self._canonical(ds, spec, values=True), spec)
        else:
            plain = self._plain_path(spec) or self.cache or self.data
            source = StoreSource(str(plain) if isinstance(plain, Path) else _only_path(plain), spec)
        splits = split(source, self.fractions, self.by)
        if not splits["train"]:
            raise ValueError(f"found no training frames with fractions {self.fractions}, wanted some")
        self.spec, self.normaliser = _fit(source, splits["train"], spec, self.buffer, self.climatology)
        self.splits, self.source = splits, source

    def windows(self, name: Literal["train", "val", "test"]) -> Windows:
        """The windows of a split, for this rank."""
        train = name == "train"
        length = self.length if train else self.eval_length
        world, rank = self._ranks()

        def build(batch_size: int) -> Windows:
            return Windows(
                self.source,
                self.splits[name],
                length,
                batch_size,
                stride=self.stride if train else self.eval_stride,
                shuffle=train,
                # On several ranks evaluation, too, needs as many batches on each, or the collectives would hang.
                drop_last=train or world > 1,
                seed=self.seed,
                rank=rank,
                world=world,
                buffer=self.buffer,
            )

        windows = build(self.batch_size)
        if windows.batches == 0:
            if train or windows.windows < world:
                raise ValueError(
                    f"{name}: found {windows.windows} windows of {length} frames, wanted at least {world} x "
                    f"{self.batch_size} for a batch on every rank. Usual fix: a smaller batch_size"
                )
            windows = build(windows.windows // world)
        return windows

    def frames(self, name: Literal["train", "val", "test"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every frame of a split once, in order, in pieces of consecutive frames: (n, C, *space), phase (n, 4)."""
        return Windows(self.source, self.splits[name], 1, 1, buffer=self.buffer).frames()

    def train_dataloader(self) -> WindowLoader:
        return self._loader("train")

    def val_dataloader(self) -> WindowLoader | list[WindowLoader]:
        return self._loader("val") if self.splits["val"] else []

    def test_dataloader(self) -> WindowLoader | list[WindowLoader]:
        return self._loader("test") if self.splits["test"] else []

    def predict_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """The test split."""
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return Batch(*(x.to(device, non_blocking=self.pin_memory) for x in batch))

    def _loader(self, name: Literal["train", "val", "test"]) -> WindowLoader:
        return WindowLoader(self.windows(name), self.workers, self.pin_memory)

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _opened(self) -> tuple[xr.Dataset, FieldSpec]:
        ds = self.data if isinstance(self.data, xr.Dataset) else open_dataset(self.data, **self.open_options)
        if self.wanted_spec is not None:
            return ds, self.wanted_spec
        # A directory lists the arrays of a store in any order, but channels must be the same on every rank and day.
        named = ds if self.infer_options.get("variables") else ds[sorted(ds.data_vars, key=str)]
        return ds, FieldSpec.infer(named, **self.infer_options)

    def _canonical(self, ds: xr.Dataset, spec: FieldSpec, values: bool) -> xr.Dataset:
        return check(ds, spec, members=True, gaps=True, values=values)

    def _fits(self, ds: xr.Dataset, spec: FieldSpec) -> bool:
        return 4 * sum(ds[n].size for n in spec.names if n in ds) <= self.memory

    def _plain_path(self, spec: FieldSpec) -> str | None:
        """The data's own path, where it can be read in pieces as it is."""
        if isinstance(self.data, str | Path) and not obstacles(self.data, spec):
            return str(self.data)
        return None


def _only_path(data: Any) -> str:
    if isinstance(data, str | Path):
        return str(data)
    raise ValueError(
        "found data that is neither small enough for `memory` nor one plain zarr store, wanted either. Usual fix: "
        "cache='somewhere.zarr', where a plain copy is written once; or a larger memory="
    )


def _fit(
    source: Source, train: list[Rectangle], spec: FieldSpec, buffer: int, climatology: Mapping[str, Any]
) -> tuple[FieldSpec, Normaliser]:
    """One pass over the training frames: the normaliser, and the spec with every variable's training range."""
    normaliser = Normaliser(spec, **climatology)
    valid = spec.mask_tensor()
    low = torch.full((len(spec.names),), torch.inf)
    high = torch.full((len(spec.names),), -torch.inf)

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        for x, phase in Windows(source, train, 1, 1, buffer=buffer).frames():
            low.copy_(torch.minimum(low, torch.where(valid, x, torch.inf).movedim(1, 0).flatten(1).amin(1)))
            high.copy_(torch.maximum(high, torch.where(valid, x, -torch.inf).movedim(1, 0).flatten(1).amax(1)))
            yield x, phase

    normaliser.fit(watched())
    ranges = {
        name: {"minimum": float(low[c]), "maximum": float(high[c]), "mean": float(normaliser.mean[c]),
               "std": float(normaliser.std[c])}
        for c, name in enumerate(spec.names)
    }  # fmt: skip
    return spec.replace(variables=ranges), normaliser
