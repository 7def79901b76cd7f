# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # The small disturbance that makes the largest burst
#
# Forced two-dimensional turbulence now and then dissipates far more than usual. Which small change of its state brings
# such a burst about? Farazmand and Sapsis (2017, doi:10.1126/sciadv.1701533) search for the answer in this very flow,
# with gradients from an adjoint solver. Here the gradients come through the surrogate `kolmogorov64`, and the solver
# only gives its verdict on the state that was found.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import lapse
from lapse.datasets.simulate import simulate
from lapse.physics.spectrum import power_spectrum

plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True})

# %% tags=["parameters"]
LEAD = 10  # frames of 0.2 s: the burst is wanted after 2 s
RADII = [0.1, 0.2, 0.4]  # size of the disturbance, in standard deviations of the vorticity
ITERATIONS = 20
ROUNDS = 4  # of the search, where the solver takes part
RANDOM = 16  # disturbances that were not designed
SPIN_UP = 20.0  # s
FRAMES = 24  # of the flow before

# %% [markdown]
# ## The flow
#
# Some seconds of turbulence at the parameters that the model was trained on. The last frame is the state to disturb,
# the frames before it tell the search what states of this flow look like.

# %%
model = lapse.load("kolmogorov64")
print(model.spec)
(path,) = simulate("kolmogorov", "turbulence.zarr", trajectories=1, frames=FRAMES, interval=0.2, resolution=64,
                   spin_up=SPIN_UP, parameters=model.spec.parameters, seed=7, resume=True, progress=False)  # fmt: skip
flow = lapse.open_dataset(path).isel(trajectory=0).load()
given = flow.isel(time=[-1])

# %% [markdown]
# ## The objective
#
# The mean dissipation of a plane flow is the viscosity times the mean square of its vorticity. An objective is a
# function of the forecast, written with torch; the forecast hands out fields in physical units, members first.

# %%
nu = model.spec.parameters["viscosity"]


def dissipation(forecast):
    """Mean dissipation at the last lead, m2 s-3."""
    return nu * forecast.field("vorticity", LEAD).square().mean(dim=(1, 2))


def dissipated(ds):
    """The same of a Dataset, at every time that it has."""
    return nu * (ds["vorticity"] ** 2).mean(("y", "x"))


# %% [markdown]
# ## The search
#
# The disturbed state keeps the mean of the given one exactly, stays within a radius of it and inside the range of the
# training data. `verify="solver"` runs the true equation from the result.

# %%
designs = {}
for radius in RADII:
    designs[radius] = given.lapse.design(
        model, dissipation, LEAD, sense="maximise", constraints=("mean",), radius=radius, mode="mean",
        iterations=ITERATIONS, predicted=19, compare=["fast"], reference=flow, verify="solver", progress=False,
    )  # fmt: skip

for radius, best in designs.items():
    low, high = best["interval"].values
    print(
        f"radius {radius}: dissipation {float(best['achieved_given']):.3f} -> {float(best['predicted_objective']):.3f} "
        f"predicted (90 %: {low:.3f} to {high:.3f}), {float(best['achieved']):.3f} by the solver; "
        f"constraints hold to {float(best['violation'].max()):.0e}; {float(best['seconds'][-1]):.1f} s"
    )

# %% [markdown]
# Is that much? The measure is what disturbances of the same size do that were not designed: differences of states of
# the flow, scaled to the largest radius, all run by the solver.

# %%
largest = max(RADII)
best = designs[largest]
rng = np.random.default_rng(0)
kicks = []
for _ in range(RANDOM):
    i, j = rng.choice(FRAMES, 2, replace=False)
    kick = np.roll((flow["vorticity"][i] - flow["vorticity"][j]).values, rng.integers(64), axis=1)  # along the force
    kicks.append(largest * model.spec["vorticity"].std * kick / kick.std())
unlucky = given + xr.DataArray(np.stack(kicks), dims=("member", "y", "x"))
unlucky["vorticity"].attrs = given["vorticity"].attrs

steps = LEAD + 5
undisturbed = model.solve(given, steps)
random = model.solve(unlucky, steps)
burst = model.solve(best, steps)
forecast = model.forecast(best, steps, 32, progress=False)

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
t = undisturbed["lead_time"]
axes[0].plot(t, dissipated(random).squeeze().T, color="0.75", lw=0.8)
axes[0].plot([], [], color="0.75", label=f"{RANDOM} random disturbances, solver")
axes[0].plot(t, dissipated(undisturbed).squeeze(), "k", label="undisturbed, solver")
axes[0].plot(t, dissipated(burst).squeeze(), "C3", lw=2, label="designed, solver")
members = dissipated(forecast).squeeze()
axes[0].fill_between(t, members.min("member"), members.max("member"), color="C0", alpha=0.3, lw=0)
axes[0].plot(t, members.mean("member"), "C0--", label="designed, surrogate (range of 32 members)")
axes[0].axvline(0.2 * LEAD, color="0.5", lw=0.8, ls=":")
axes[0].set(xlabel="time [s]", ylabel="dissipation [m² s⁻³]", title=f"disturbances of {largest} standard deviations")
axes[0].set_ylim(top=1.25 * float(members.max()))
axes[0].legend(fontsize=8, loc="upper left")
middle = [float(b["predicted_objective"]) for b in designs.values()]
ends = np.array([b["interval"].values for b in designs.values()]).T
axes[1].errorbar(RADII, middle, abs(ends - middle), fmt="C0o", capsize=4, label="surrogate, 90 % interval")
axes[1].plot(RADII, [float(b["achieved"]) for b in designs.values()], "C3s", label="solver")
axes[1].axhline(float(best["achieved_given"]), color="k", lw=0.8, label="undisturbed")
axes[1].set(xlabel="radius [standard deviations]", ylabel="dissipation [m² s⁻³]", title=f"after {0.2 * LEAD:g} s",
            xlim=(0, 1.15 * largest), ylim=(0, None))  # fmt: skip
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## What the disturbance does
#
# Above: the state, what was added to it (drawn five times as strong), and their sum. Below: the flow after the lead
# time, without the disturbance, with it, and as the surrogate had foreseen it.

# %%
limit = float(abs(burst["vorticity"]).max())
look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "shading": "nearest", "rasterized": True}
kick = (best["vorticity"] - best["vorticity_given"]).squeeze()
then = {"lead_time": LEAD - 1, "init_time": 0}
panels = [
    ("given", best["vorticity_given"].squeeze()), ("added, × 5", 5 * kick), ("designed", best["vorticity"].squeeze()),
    ("from given, solver", undisturbed["vorticity"].isel(then)),
    ("from designed, solver", burst["vorticity"].isel(then)),
    ("from designed, surrogate", forecast["vorticity"].isel(then).isel(member=0)),
]  # fmt: skip
figure, axes = plt.subplots(2, 3, figsize=(9.5, 6), sharex=True, sharey=True)
for axis, (title, field) in zip(axes.flat, panels, strict=True):
    drawn = axis.pcolormesh(field["x"], field["y"], field, **look)
    axis.set(title=title, aspect="equal")
for axis in axes[:, 0]:
    axis.set_ylabel("y [m]")
for axis in axes[1]:
    axis.set_xlabel("x [m]")
figure.colorbar(drawn, ax=axes, label="vorticity [s⁻¹]", shrink=0.7)
plt.show()

# %% [markdown]
# At which scales does it act? The spectrum of the disturbance beside that of the flow.

# %%
def spectrum(field):
    """Wavenumbers, and the power of a field of vorticity at each."""
    k, power = power_spectrum(torch.as_tensor(np.asarray(field).squeeze()), model.spec.grid)
    return k[1:25], power[1:25]


figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
axes[0].loglog(*spectrum(given["vorticity"]), "k", label="given state")
axes[0].loglog(*spectrum(kick), "C3", label="designed disturbance")
k, power = zip(*(spectrum(x) for x in kicks), strict=True)
axes[0].loglog(k[0], torch.stack(power).mean(dim=0), "0.6", label="random disturbances")
axes[0].set(xlabel="wavenumber [m⁻¹]", ylabel="power of vorticity [s⁻²]", ylim=(1e-4, None))
axes[0].legend(fontsize=8)
for radius, b in designs.items():
    axes[1].plot(b["seconds"], b["objective"], ".-", label=f"radius {radius}")
axes[1].set(xlabel="processor time [s]", ylabel="objective in the search [m² s⁻³]")
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## How far to trust it
#
# The interval is the surrogate's; the red squares are the solver's. Where a square leaves its interval, the optimiser
# has found an error of the surrogate as much as a property of the flow. `lapse_design_doubts` tells what gave rise to
# suspicion before the solver was asked:

# %%
for radius, b in designs.items():
    print(f"radius {radius}:", b.attrs["lapse_design_doubts"] or "no doubts")
chance = dissipated(random).isel(lead_time=LEAD - 1)
gain = float(best["achieved"]) - float(best["achieved_given"])
print(f"gain by design {gain:.3f} m2 s-3; the best of {RANDOM} random disturbances gained "
      f"{float(chance.max()) - float(best['achieved_given']):.3f}")  # fmt: skip

# %% [markdown]
# ## With the solver as critic
#
# A mean over the whole plane forgives many errors. A demanding objective does not: the strongest vortex in a square of
# one metre. There the surrogate promises more than it can keep, and more steps make that worse. With `repairs` the
# solver runs after every round of the search, the surrogate is corrected until it reproduces that run, and the search
# goes on from there: a few runs of the solver, and none of its gradients.

# %%
vortex = lapse.objectives.region_mean("vorticity", lead=LEAD, x=slice(2.0, 3.0), y=slice(2.0, 3.0))
options = {
    "sense": "maximise", "constraints": ("mean",), "radius": 0.5, "mode": "mean", "over": "latent", "predicted": 19,
    "compare": ["fast"], "reference": flow, "verify": "solver", "progress": False,
}  # fmt: skip
alone = given.lapse.design(model, vortex, LEAD, iterations=ROUNDS * ITERATIONS, **options)
repaired = given.lapse.design(model, vortex, LEAD, iterations=ITERATIONS, repairs=ROUNDS, **options)

figure, axis = plt.subplots(figsize=(6.5, 3.8))
axis.plot(alone["seconds"], alone["objective"], "C0", label="surrogate alone: promised")
axis.plot(alone["seconds"][-1], alone["achieved"], "C0s", label="by the solver")
for k, part in repaired.groupby("round"):
    axis.plot(part["seconds"], part["objective"], "C3", label="repaired: promised" if k == 0 else None)
axis.plot(repaired["seconds_by_run"], repaired["achieved_by_run"], "C3s", label="by the solver, after every round")
axis.set(xlabel="processor time [s]", ylabel="mean vorticity of the square [s⁻¹]", title=f"after {0.2 * LEAD:g} s")
axis.legend(fontsize=8)
plt.show()
