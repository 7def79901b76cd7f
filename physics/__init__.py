"""Laws and grids: tensors in, tensors out; knows nothing of learning, files or xarray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .verification import verify as verify

__all__ = ["verify"]


def __getattr__(name: str) -> Any:
    if name == "verify":  # on first use, so that `import lapse` stays free of torch
        return import_module(".verification", __name__).verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
