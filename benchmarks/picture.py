"""The picture of the front page, from the files that `make demo` left in demo/.

python benchmarks/picture.py          # writes docs/images/forecast.png
"""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from record import ROOT

matplotlib.use("Agg")


def main() -> None:
    fc = xr.open_zarr(ROOT / "demo" / "forecast.zarr", decode_timedelta=False)["vorticity"].isel(init_time=0)
    truth = xr.open_zarr(ROOT / "demo" / "truth.zarr")["vorticity"].squeeze(drop=True)
    leads = [0.2, 2.0, 4.0, 8.0]
    figure, axes = plt.subplots(4, len(leads), figsize=(7.2, 7.4), constrained_layout=True)
    for column, lead in enumerate(leads):
        members = fc.sel(lead_time=lead, method="nearest")
        at = float(members["valid_time"])
        panels = [
            truth.sel(time=at, method="nearest"),
            members.mean("member"),
            members.isel(member=0),
            members.std("member"),
        ]
        for row, panel in enumerate(panels):
            signed = row < 3
            limits = {"cmap": "RdBu_r", "vmin": -10, "vmax": 10} if signed else {"cmap": "magma", "vmin": 0, "vmax": 4}
            image = axes[row, column].imshow(np.asarray(panel), origin="lower", **limits)
            axes[row, column].set(xticks=[], yticks=[])
            if column == len(leads) - 1 and row in (0, 3):
                figure.colorbar(image, ax=axes[:3, -1] if row == 0 else axes[3, -1], label="s⁻¹", shrink=0.8)
        axes[0, column].set_title(f"after {lead:g} s", fontsize=10)
    for row, name in enumerate(("truth", "ensemble mean", "member 0", "spread")):
        axes[row, 0].set_ylabel(name)
    path = ROOT / "docs" / "images" / "forecast.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
