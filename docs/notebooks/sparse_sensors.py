# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # From a few sensors to a forecast
#
# A turbulent flow is measured by some two hundred sensors, 5 % of the grid, with noise. What did the whole field look
# like, how well is that known, and how far ahead can it be forecast? Sensors become an ensemble of analyses
# (`augment`), those an ensemble forecast, and both are judged against the simulation that the sensors were read from.

# %%
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import lapse
from lapse.datasets.simulate import simulate

plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True})

# %% tags=["parameters"]
WINDOW = 8  # frames of 0.2 s with observations
LEADS = 15  # frames to forecast after the last of them
MEMBERS = 32
ENSEMBLE = 128  # members behind the covariances
SHARE = 0.05  # of the cells have a sensor
NOISE = 0.2  # s-1, standard deviation of a sensor's error
SPIN_UP = 20.0  # s

# %% [markdown]
# ## The experiment
#
# The truth is a simulation; the sensors see it at fixed places, with noise. Everywhere else is NaN: that is all that
# `augment` has to be told, apart from the size of the noise.

# %%
model = lapse.load("kolmogorov64")
(path,) = simulate("kolmogorov", "truth.zarr", trajectories=1, frames=WINDOW + LEADS, interval=0.2, resolution=64,
                   spin_up=SPIN_UP, parameters=model.spec.parameters, seed=11, resume=True, progress=False)  # fmt: skip
truth = lapse.open_dataset(path).isel(trajectory=0).load()
rng = np.random.default_rng(0)
sensors = xr.DataArray(rng.random((64, 64)) < SHARE, dims=("y", "x"))
noise = NOISE * rng.standard_normal((WINDOW, 64, 64)).astype("float32")
observed = (truth.isel(time=slice(WINDOW)) + xr.DataArray(noise, dims=("time", "y", "x"))).where(sensors)
observed["vorticity"].attrs = {**truth["vorticity"].attrs, "observation_error": NOISE}
print(f"{int(sensors.sum())} sensors, {int(observed['vorticity'].notnull().sum())} numbers in {WINDOW} frames")

# %% [markdown]
# ## Analysis
#
# The attribute `observation_error` tells how noisy the sensors are. The innovation compares every frame's misfit before
# it was used with what climate, model and noise promise: about 1 when they fit together.

# %%
analyses = observed.lapse.augment(model, MEMBERS, ensemble=ENSEMBLE, progress=False)
print("innovation:", analyses["innovation"].values.round(2))
analyses

# %% [markdown]
# The opponent is *kriging*: the best linear estimate from one frame's sensors and the covariance of the flow, here
# taken from the simulation itself, which is generous.

# %%
def kriging(frame, std):
    """Best linear estimate from one frame with holes, for a homogeneous field of the truth's mean spectrum."""
    power = (np.abs(np.fft.fft2(truth["vorticity"].values)) ** 2).mean(axis=0)
    covariance = np.fft.ifft2(power).real
    covariance *= std**2 / covariance[0, 0]
    i, j = np.nonzero(np.isfinite(frame))
    among = covariance[(i[:, None] - i) % 64, (j[:, None] - j) % 64] + NOISE**2 * np.eye(len(i))
    y, x = np.indices(frame.shape)
    weights = np.linalg.solve(among, frame[i, j])
    return (covariance[(y[..., None] - i) % 64, (x[..., None] - j) % 64]) @ weights


std = float(truth["vorticity"].std())
kriged = observed["vorticity"].copy(data=np.stack([kriging(f, std) for f in observed["vorticity"].values]))

# %%
last = {"time": WINDOW - 1}
best, spread = analyses["vorticity"].mean("member").isel(last), analyses["vorticity"].std("member").isel(last)
then = truth["vorticity"].isel(last)
limit = float(abs(then).max())
look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
small = {"cmap": "magma_r", "vmin": 0, "vmax": 0.25 * std}
panels = [
    ("truth", then, look), ("sensors, last frame", observed["vorticity"].isel(last), look),
    ("kriging", kriged.isel(last), look), ("analysis, mean", best, look),
    ("its error", abs(best - then), small), ("its standard deviation", spread, small),
]  # fmt: skip
figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True)
for axis, (title, field, how) in zip(axes.flat, panels, strict=True):
    drawn = axis.pcolormesh(field["x"], field["y"], field, shading="nearest", rasterized=True, **how)
    axis.set(title=title, aspect="equal")
    if axis in (axes[0, 2], axes[1, 2]):
        figure.colorbar(drawn, ax=axis, label="vorticity [s⁻¹]", shrink=0.8)
for axis in axes[:, 0]:
    axis.set_ylabel("y [m]")
for axis in axes[1]:
    axis.set_xlabel("x [m]")
plt.show()

# %% [markdown]
# ## Forecast
#
# The analyses are handed over as they are: `forecast` takes their last frame, and each member starts from one of them.
# For comparison a forecast from the true state, which nobody has.

# %%
fc = analyses.lapse.forecast(model, LEADS, MEMBERS, seed=3, progress=False)
perfect = truth.isel(time=[WINDOW - 1]).lapse.forecast(model, LEADS, MEMBERS, seed=3, progress=False)

known = analyses.lapse.score(truth, spec=model.spec, by_init=True).sel(variable="vorticity").isel(lead_time=0)
ahead = fc.lapse.score(truth, spec=model.spec).sel(variable="vorticity")
ideal = perfect.lapse.score(truth, spec=model.spec).sel(variable="vorticity")

# %%
t = truth["time"].values
window, later = t[:WINDOW], t[WINDOW:]
wrong = np.sqrt(((kriged - truth["vorticity"]) ** 2).mean(("y", "x")))
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
axes[0].axvspan(window[0], window[-1], color="0.93")
axes[0].text(window[0], 1.1 * std, " observed", color="0.4", fontsize=8)
axes[0].axhline(std, color="k", lw=0.8, label="climate")
axes[0].plot(window, wrong, "C1", label="kriging, frame by frame")
error = np.concatenate([known["rmse"], ahead["rmse"]])
spread = ((MEMBERS + 1) / MEMBERS) ** 0.5 * np.concatenate([known["spread"], ahead["spread"]])
axes[0].plot(t, error, "C0.-", label="analysis, then forecast: error of the mean")
axes[0].plot(t, spread, "C0--", label="and spread, which should equal it")
axes[0].plot(later, ideal["rmse"], "C2", label="forecast from the true state")
axes[0].set(xlabel="time [s]", ylabel="error [s⁻¹]", yscale="log", ylim=(0.3 * NOISE, 1.5 * std))
axes[0].legend(fontsize=8, loc="lower right")

blind = ~sensors  # a place without a sensor: the cell whose neighbours are farthest from one
far = blind.copy(data=np.full((64, 64), np.inf))
for j, i in zip(*np.nonzero(sensors.values), strict=True):
    y, x = (np.abs(np.arange(64) - c) for c in (j, i))
    far.values[:] = np.minimum(far, np.hypot(np.minimum(y, 64 - y)[:, None], np.minimum(x, 64 - x)))
row, column = np.unravel_index(int(far.values.argmax()), far.shape)
place = {"y": row, "x": column}
axes[1].axvspan(window[0], window[-1], color="0.93")
analysed, ahead_of = analyses["vorticity"].isel(place), fc["vorticity"].isel(place).isel(init_time=0)
here = np.concatenate([analysed.transpose("time", "member"), ahead_of.transpose("lead_time", "member")])
axes[1].fill_between(t, *np.quantile(here, [0.05, 0.95], axis=1), color="C0", alpha=0.25, lw=0)
axes[1].plot(t, here.mean(axis=1), "C0")
axes[1].plot(t, truth["vorticity"].isel(place), "k.-", lw=1, label="truth")
axes[1].fill_between([], [], [], color="C0", alpha=0.25, label="90 % of the members")
axes[1].set(xlabel="time [s]", ylabel="vorticity [s⁻¹]", title=f"{float(far.max()):.1f} cells from the nearest sensor")
axes[1].legend(fontsize=8)
plt.show()
print(f"error of the last analysis {float(known['rmse'][-1]) / std:.2f} standard deviations, of kriging "
      f"{float(wrong[-1]) / std:.2f}; after {LEADS} frames {float(ahead['rmse'][-1]) / std:.2f}, "
      f"from the true state {float(ideal['rmse'][-1]) / std:.2f}")  # fmt: skip

# %% [markdown]
# ## Can its probabilities be used?
#
# An engineer asks whether a vortex will pass, not what the mean field is. The event: vorticity beyond one and a half
# standard deviations of the flow. Reliability of its forecast probability, over all cells, and the ranks of the truth
# among the members.

# %%
strong = 1.5 * std
event = fc.lapse.score_event(truth, "vorticity", above=strong, bins=6, spec=model.spec)
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
probability = (fc["vorticity"].isel(init_time=0, lead_time=LEADS // 2) > strong).mean("member")
look = {"cmap": "PuBu", "vmin": 0, "vmax": 1, "shading": "nearest"}
drawn = axes[0].pcolormesh(probability["x"], probability["y"], probability, **look)
happened = truth["vorticity"].isel(time=WINDOW + LEADS // 2)
axes[0].contour(happened["x"], happened["y"], happened, [strong], colors="k", linewidths=1)
axes[0].set(title=f"P(ω > {strong:.1f} s⁻¹) at lead {0.2 * (LEADS // 2 + 1):.1f} s", aspect="equal")
axes[0].set(xlabel="x [m]", ylabel="y [m]")
figure.colorbar(drawn, ax=axes[0], label="probability; line: where it was", shrink=0.8)
axes[1].plot([0, 1], [0, 1], "k", lw=0.8)
for k, colour in ((0, "C0"), (LEADS - 1, "C3")):
    at = event.isel(lead_time=k)
    axes[1].plot(at["forecast"], at["observed"], ".-", color=colour, label=f"lead {0.2 * (k + 1):.1f} s")
axes[1].set(xlabel="forecast probability", ylabel="frequency", aspect="equal", title="reliability, one case")
axes[1].legend(fontsize=8)
ranks = ahead["rank_histogram"]
for k, colour in ((0, "C0"), (LEADS - 1, "C3")):
    axes[2].step(ranks["rank"], ranks.sizes["rank"] * ranks.isel(lead_time=k), color=colour, where="mid")
axes[2].axhline(1, color="k", lw=0.8)
axes[2].set(xlabel="members below the truth", ylabel="frequency / flat", title="rank histogram", ylim=(0, None))
plt.show()
print("spread/skill of the forecast:", ahead["spread_skill"].values.round(2))

# %% [markdown]
# One case has a few dozen independent vortices, so that reliability and ranks scatter; repeat it with other seeds
# before a figure goes into a paper. `docs/guide/augment.md` says what the samples rest on.
