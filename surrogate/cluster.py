"""Blocks of an ensemble on a cluster of dask.distributed, one model a worker process.

The scheduler hands out names of blocks, nothing larger: a worker opens the ensemble once, with its model, computes
block after block and writes each to the shared file system itself. What a worker lost is done by another (dask moves
the task), and what was finished has its marker. The client sees no field.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..datasets.shards import Block, StoreError

if TYPE_CHECKING:
    from .ensemble import Ensemble

__all__ = ["compute", "local"]

_one_at_a_time = threading.Lock()


def local(workers: int | None = None) -> Any:
    """A client of a new cluster on this machine: processes of one thread. ImportError names the extra."""
    distributed = _distributed()
    cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
    return distributed.Client(cluster)


def compute(ensemble: Ensemble, blocks: list[Block], client: Any, tick: Callable[[], Any]) -> None:
    """Compute blocks on a cluster, and call ``tick`` after each.

    Arguments:
        client: of the cluster, its scheduler's address, or None for a new one on this machine, closed at the end.

    Raises whatever a worker raised, after cancelling what was not begun; completed blocks are kept.
    """
    distributed = _distributed()
    model = ensemble.job.model
    if model.source is None:
        raise StoreError(
            f"executor='dask': {model.name!r} was never saved, so that workers cannot load it. "
            "Usual fix: lapse.load(model.save('my_model'))"
        )
    own = client is None
    client = local() if own else distributed.Client(client) if isinstance(client, str) else client
    try:
        place, source = str(ensemble.path.resolve()), str(model.source.resolve())
        device = str(ensemble.job.device)
        run = uuid4().hex[:8]
        futures = [client.submit(_block, place, source, device, b.index, key=f"lapse-{run}-{b.name}") for b in blocks]
        try:
            for future in distributed.as_completed(futures):
                future.result()
                tick()
        except BaseException:
            client.cancel(futures)
            raise
    finally:
        if own:
            cluster = client.cluster
            client.close()
            cluster.close()


def _block(place: str, source: str, device: str, index: tuple[int, ...]) -> None:
    """In a worker: compute and write one block."""
    with _one_at_a_time:  # a worker with several threads still has one model, and torch its own threads
        ensemble = _opened(place, source, device)
        ensemble.write(ensemble.writer.plan.block(index))


@lru_cache(maxsize=1)
def _opened(place: str, source: str, device: str) -> Ensemble:
    import torch

    from .ensemble import Ensemble
    from .package import load

    if device == "cpu":
        torch.set_num_threads(1)
    return Ensemble.at(place, load(source, device))


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise ImportError("executor='dask' needs dask.distributed: pip install 'lapse[hpc]'") from None
    return distributed
