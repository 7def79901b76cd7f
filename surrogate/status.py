"""How far an ensemble has come, told from its markers alone: no model is loaded, and no writer is disturbed."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..datasets.shards import ShardedWriter

__all__ = ["Status", "status"]

_BUSY = 600.0  # seconds without a new block after which nobody is said to write


@dataclass(frozen=True)
class Status:
    """Blocks done and in all, bytes on the disk, and seconds.

    Attributes:
        rate: blocks a minute, over the last ten minutes of writing; None before there are two.
        idle: seconds since the last block was completed; None before the first.
        complete: whether the ensemble was finalised.
    """

    path: str
    keep: str
    members: int
    blocks: int
    done: int
    bytes: int
    rate: float | None
    idle: float | None
    complete: bool

    @property
    def remaining(self) -> float | None:
        """Minutes that the missing blocks will take at the present rate."""
        return (self.blocks - self.done) / self.rate if self.rate else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "remaining_minutes": self.remaining}

    def __str__(self) -> str:
        share = 100 * self.done / max(self.blocks, 1)
        text = f"{self.path}: {self.done} of {self.blocks} blocks ({share:.0f} %) of {self.members:,} members"
        text += f", {self.bytes / 1e6:,.1f} MB of {self.keep}"
        if self.complete:
            return f"{text}; complete"
        if self.done == self.blocks:
            return f"{text}; all blocks are there: finalise it"
        if self.idle is None:
            return f"{text}; not begun"
        if self.rate and self.remaining is not None and self.idle < _BUSY:
            return f"{text}; {self.rate:.3g} blocks a minute, {self.remaining:.1f} minutes to go"
        return f"{text}; last block {self.idle / 60:.1f} minutes ago"


def status(path: str | Path) -> Status:
    """How far the ensemble at ``path`` has come. StoreError where there is none."""
    from .ensemble import described
    from .keep import keeper

    path = Path(path)
    told = described(path)
    home = keeper(told["keep"], told["options"]).home(path)
    writer = ShardedWriter.open(home)
    names = {f"{block.name}.done" for block in writer.blocks()}
    times = sorted(_time(m) for m in (home / ".progress").iterdir() if m.name in names)
    now = time.time()
    recent = [t for t in times if times and t > times[-1] - _BUSY]
    span = recent[-1] - recent[0] if len(recent) > 1 else 0.0
    return Status(
        path=str(path), keep=told["keep"], members=told["members"], blocks=len(names), done=len(times),
        bytes=sum(_bytes(f) for f in path.rglob("*")), rate=60 * (len(recent) - 1) / span if span else None,
        idle=max(0.0, now - times[-1]) if times else None,
        complete=_finished(path, told["keep"], told["members"], writer),
    )  # fmt: skip


def _finished(path: Path, keep: str, members: int, writer: ShardedWriter) -> bool:
    """Of statistics, whether the merged ones are those of all members."""
    if keep != "statistics":
        return writer.complete
    try:
        made = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        return False
    return writer.complete and made["identity"].get("members") == members


def _time(marker: Path) -> float:
    try:
        return marker.stat().st_mtime
    except FileNotFoundError:  # of a block that was just forgotten
        return 0.0


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:  # a writer's temporary file
        return 0
