"""``ds.lapse`` for whoever imports lapse, at no cost for whoever does not use xarray.

Registering an accessor takes xarray, whose import takes longer than all of lapse's front door. Hence: at once where
xarray is there already; else as soon as it comes, in the same process, through a finder that does nothing but add one
call at the end of xarray's import, and then leaves.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_accessor"]


def register_accessor() -> None:
    """Make ``ds.lapse`` known to xarray, now or when it is imported."""
    if "xarray" in sys.modules:
        import_module(f"{__package__}.accessor")
    elif not any(isinstance(finder, _WhenXarrayComes) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenXarrayComes())


class _WhenXarrayComes(MetaPathFinder):
    """Finds xarray as the other finders do."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "xarray":
            return None
        others = (f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self)
        spec = next((s for s in others if s is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            register_accessor()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
