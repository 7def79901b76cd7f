# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # An ensemble forecast of air temperature, and whether to believe it
#
# Surface air temperature over North America every 6 hours, of the NCEP/NCAR Reanalysis (Kalnay et al. 1996). The
# model that comes with lapse was fitted to the first 65 % of two years. Here it forecasts the last 30 %, which neither
# it nor its settings have seen, and is judged as any forecast is: against climatology and persistence, by its spread,
# and by the probabilities that it gives to frost.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import lapse
from lapse.surrogate.baselines import climatology, persistence

plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.25})

# %% tags=["parameters"]
STARTS = 40  # forecasts, spread over the test period
MEMBERS = 24
LEADS = 20  # of 6 hours: five days
PLACE = {"lat": 41.9, "lon": 272.4}  # Chicago

# %% [markdown]
# The data is xarray's tutorial data set, which `xr.tutorial` downloads; a copy on the disk does as well. The model
# knows what it was trained on, and says what does not fit: here nothing.

# %%
store = Path(os.environ.get("LAPSE_DATA", "../shared/data"), "ncep_air_temperature", "air_temperature.zarr")
ds = lapse.open_dataset(store if store.exists() else xr.tutorial.open_dataset("air_temperature"))
model = lapse.load("air-temperature")
print(model)

# %%
count = ds.sizes["time"]
train, test = ds.isel(time=slice(int(0.65 * count))), ds.isel(time=slice(int(0.7 * count), None))
analyses = model.check(test).load()  # canonical names, order and units
past = model.check(train).load()
starts = analyses["time"].values[np.linspace(8, analyses.sizes["time"] - LEADS - 1, STARTS).astype(int)]
print("test period:", str(starts[0])[:10], "to", str(starts[-1])[:10])

# %% [markdown]
# ## One forecast
#
# The last of the starts lies in December. A forecast is a Dataset over start, member and lead, in the data's units.

# %%
fc = model.forecast(analyses, LEADS, MEMBERS, init_times=starts, seed=1, progress=False)
winter = fc["air"].sel(init_time=starts[-1])
observed = analyses["air"].sel(time=winter["valid_time"]).drop_vars("time")
fc

# %%
lead = winter["lead_time"][min(11, LEADS - 1)]  # three days
hours = int(lead / np.timedelta64(1, "h"))
mean, spread = winter.sel(lead_time=lead).mean("member"), winter.sel(lead_time=lead).std("member")
truth_then = analyses["air"].sel(time=mean["valid_time"])
lon = xr.where(mean["lon"] > 180, mean["lon"] - 360, mean["lon"])


def chart(axis, field, title, **look):
    """A map without a map library: degrees at the mean latitude's aspect, the freezing line in black."""
    drawn = axis.pcolormesh(lon, field["lat"], field, shading="nearest", rasterized=True, **look)
    axis.set(title=title, aspect=1 / np.cos(np.deg2rad(45)), xlabel="longitude [°E]", xticks=range(-150, -29, 30))
    axis.grid(visible=False)
    return drawn


figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
kelvin = {"cmap": "RdYlBu_r", "vmin": 233, "vmax": 313}
chart(axes[0], truth_then, f"reanalysis, {str(mean['valid_time'].values)[:13]} UTC", **kelvin)
warm = chart(axes[1], mean, f"mean of {MEMBERS} members at {hours} h", **kelvin)
wide = chart(axes[2], spread, "their standard deviation", cmap="viridis", vmin=0)
for axis, field in ((axes[0], truth_then), (axes[1], mean)):
    axis.contour(lon, field["lat"], field, [273.15], colors="black", linewidths=1)
axes[2].plot(lon.sel(lon=PLACE["lon"], method="nearest"), PLACE["lat"], "r*", ms=9)
axes[0].set_ylabel("latitude [°N]")
figure.colorbar(warm, ax=axes[:2], label="air temperature [K]", shrink=0.8)
figure.colorbar(wide, ax=axes[2], label="[K]", shrink=0.8)
plt.show()

# %% [markdown]
# The same forecast at one place, as a meteogram: what a user of the forecast would see.

# %%
here = winter.sel(**PLACE, method="nearest")
seen = observed.sel(**PLACE, method="nearest")
days = here["lead_time"] / np.timedelta64(1, "D")
normal = climatology(past, starts[-1:], fc["lead_time"])["air"].sel(**PLACE, method="nearest").squeeze()

figure, axis = plt.subplots(figsize=(8, 3.4))
for low, high, shade in ((0.05, 0.95, 0.2), (0.25, 0.75, 0.35)):
    band = here.quantile([low, high], "member")
    axis.fill_between(days, *band, color="C0", alpha=shade, lw=0, label=f"{high - low:.0%} of the members")
axis.plot(days, here.mean("member"), color="C0", label="their mean")
axis.plot(days, seen, "k.-", lw=1, label="reanalysis")
axis.plot(days, normal, color="C3", lw=1, ls="--", label="climatology")
axis.axhline(273.15, color="0.5", lw=0.8)
axis.set(xlabel="lead [days]", ylabel="air temperature [K]", xlim=(days[0], days[-1]),
         title=f"{float(here['lat']):g}°N {360 - float(here['lon']):g}°W from {str(starts[-1])[:13]} UTC")  # fmt: skip
axis.legend(ncols=3, fontsize=8)
plt.show()

# %% [markdown]
# ## Verification
#
# One case proves nothing. All starts are scored against two opponents that need no model: *persistence*, the state at
# the start, and *climatology*, states of the training period from the same season and hour. Climatology is an ensemble
# of as many members, so that its CRPS means the same.

# %%
usual = climatology(past, starts, fc["lead_time"], members=MEMBERS)
still = persistence(analyses, starts, fc["lead_time"])
scores = fc.lapse.score(analyses, spec=model.spec, baselines={"climatology": usual, "persistence": still})
air = scores.sel(variable="air")
days = air["lead_time"] / np.timedelta64(1, "D")

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
for name, colour in (("climatology", "C3"), ("persistence", "C1")):
    axes[0].plot(days, air["baseline_crps"].sel(baseline=name), color=colour, label=name)
    axes[1].plot(days, air["crps_skill"].sel(baseline=name), color=colour, label=f"over {name}")
axes[0].plot(days, air["crps"], color="C0", lw=2, label="lapse")
axes[0].set(title="CRPS, fair [K]", ylim=(0, None))
axes[1].axhline(0, color="black", lw=0.8)
axes[1].set(title="CRPS skill")
axes[2].plot(days, air["rmse"], color="black", label="error of the mean")
comparable = ((MEMBERS + 1) / MEMBERS) ** 0.5 * air["spread"]  # to the error of a mean of so many members
axes[2].plot(days, comparable, color="C0", ls="--", label="spread")
axes[2].set(title="error and spread [K]", ylim=(0, None))
for axis in axes:
    axis.set(xlabel="lead [days]", xlim=(days[0], days[-1]))
    axis.legend(fontsize=8)
plt.show()

ahead = air["crps_skill"].sel(baseline="climatology") > 0
print(f"CRPS at {days.values[0]:g} and {days.values[-1]:g} days:", air["crps"].values[[0, -1]].round(2), "K")
print(f"better than climatology at {int(ahead.sum())} of {LEADS} leads")
print("spread/skill:", air["spread_skill"].values.round(2), "(1 is calibrated)")

# %% [markdown]
# The dashed line should lie on the black one. Where it lies below, members agree with each other more than they do with
# the truth, and probabilities will be too bold. By how much is what the next section measures.

# %% [markdown]
# ## The probability of frost
#
# An ensemble forecasts probabilities: the share of members below freezing. A map of it for the December case, with the
# freezing line of the reanalysis; then, over all starts and cells, how often it froze where 10 %, 20 %, … were
# forecast.

# %%
FREEZING = 273.15
frost = (winter.sel(lead_time=lead) < FREEZING).mean("member")
figure, axis = plt.subplots(figsize=(6.4, 3.8))
drawn = chart(axis, frost, f"probability of frost at {hours} h; line: where it froze", cmap="PuBu", vmin=0, vmax=1)
axis.contour(lon, truth_then["lat"], truth_then, [FREEZING], colors="black", linewidths=1.2)
axis.set_ylabel("latitude [°N]")
figure.colorbar(drawn, label="probability", shrink=0.8)
plt.show()

# %%
event = fc.lapse.score_event(analyses, "air", below=FREEZING, spec=model.spec)
season = usual.lapse.score_event(analyses, "air", below=FREEZING, spec=model.spec)

figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
axes[0].plot([0, 1], [0, 1], color="black", lw=0.8)
for k, colour in zip((0, min(11, LEADS - 1)), ("C0", "C2"), strict=True):
    at = event.isel(lead_time=k)
    label = f"{int(at['lead_time'] / np.timedelta64(1, 'h'))} h, Brier skill {float(at['brier_skill']):.2f}"
    axes[0].plot(at["forecast"], at["observed"], ".-", color=colour, label=label)
axes[0].set(xlabel="forecast probability of frost", ylabel="frequency of frost", aspect="equal", title="reliability")
axes[0].legend(fontsize=8)
inset = axes[0].inset_axes([0.63, 0.1, 0.33, 0.25])
inset.bar(at["forecast"], at["share"], width=0.035, color="C2")
inset.set(yscale="log", title="share of forecasts", xticks=[0, 1])
inset.title.set_fontsize(8)
axes[1].plot(days, event["brier"], color="C0", lw=2, label="lapse")
axes[1].plot(days, season["brier"], color="C3", label="climatology")
axes[1].plot(days, event["uncertainty"], color="0.5", ls=":", label="always the mean frequency")
axes[1].set(xlabel="lead [days]", title="Brier score, fair", ylim=(0, None))
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## What to take from it
#
# - Two years are a short record. The figures above, not a demonstration case, say at which leads the model adds
#   something to climatology here.
# - `lapse.score` needs the spec for masks and area weights; `lapse.score_event` takes a threshold of each cell as well,
#   such as `past["air"].quantile(0.9, "time")`: then the event is a warm extreme of the place.
# - Everything is an xarray Dataset: `fc.to_zarr(...)`, or `model.forecast(..., store="fc.zarr")` for ensembles larger
#   than memory.
