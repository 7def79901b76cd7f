"""What the pages say of the shipped flow model beyond its card: other parameters, and runs of a thousand frames.

    python benchmarks/shipped.py

*Other parameters*: the solver runs at them from test states; the fast mode follows as it is, and with the effect
of the change added to every frame (`Model.at`, decisions/0007). *Long runs*: as in `benchmarks/forecast.py`, refreshed
every so many frames or never (decisions/0010), with what that does to the score at twenty frames on validation starts.
"""

import time

import torch
from contenders import emulate, prepare
from forecast import LONG, WORK, long_run

from lapse.surrogate.law import law
from lapse.surrogate.package import load
from lapse.surrogate.skill import evaluate, starts
from lapse.surrogate.train import compose, field_data
from record import Row, quick, record, show

OTHERS = {"forcing": 1.5, "viscosity": 1.67, "drag": 3.0, "low viscosity": 0.7}  # times those of the training data
REFRESH = (None, 1, 5, 10, 20)  # frames
STARTS, LEADS = (2, (1, 2)) if quick() else (8, (1, 5, 10))


def main() -> None:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    model = load("kolmogorov64")
    path, size = prepare(64, WORK)
    data = field_data(compose([f"data.path={path}"]))
    u, _ = starts(data, "test", 1 + LEADS[-1], STARTS)
    if size < 64:  # the quick data; the model wants its own grid
        own = law(model.spec)
        u = own.spin_up(torch.Generator().manual_seed(0), STARTS, 0.2)[:, None].repeat(1, 1 + LEADS[-1], 1, 1, 1)
    sigma = float(model.emulator.autoencoder.normalise(u).square().mean().sqrt())
    phase, last = torch.zeros(len(u), 1 + LEADS[-1], 4), LEADS[-1]
    rows = []
    for name, factor in OTHERS.items():
        parameter = name.split()[-1]
        wanted = {parameter: factor * model.spec.parameters[parameter]}
        other, w = law(model.spec, wanted), u.clone()
        for k in range(last):
            w[:, k + 1] = other.advance(w[:, k].double(), model.spec.interval).to(w)
        found = {
            how: evaluate(it.emulator, w, phase, "fast", LEADS, 8)
            for how, it in (("as it is", model), ("with the effect", model.at(**wanted)))
        }
        what = f"kolmogorov64 at {parameter} × {factor:g}"
        for how, leads in found.items():
            for k, figures in leads.items():
                rows.append(Row(f"3.5 {what}, {how}: rmse, lead {k}", figures["rmse"] / sigma, None, None, "σ"))
        for quantity in ("rmse", "crps"):
            ratio = found["with the effect"][last][quantity] / found["as it is"][last][quantity]
            check = f"3.5 {what}: {quantity} with the effect / as it is, lead {last}"
            rows.append(Row(check, ratio, None, "<= 0.45", "ratio"))
    if not quick():
        usual, (v, at) = model.emulator.refresh, starts(data, "val", 21, 16)
        for refresh in REFRESH:
            model.emulator.refresh = refresh
            run = long_run(emulate(model.emulator, "fast"), data, u[0, :1])
            what = "never refreshed" if refresh is None else f"refreshed every {refresh} frames"
            check = f"2.1 kolmogorov64, {what}, {LONG} frames: spectra within the truth's range"
            rows.append(Row(check, run["inside"], None, ">= 0.99" if refresh == usual else None, "share"))
            for i, power in enumerate(run["bands"], start=1):
                check = f"2.1 kolmogorov64, {what}, frames {LONG // 2} to {LONG}: power / truth, band {i} of 5"
                rows.append(Row(check, power, None, None, "ratio"))
            for quantity, value in evaluate(model.emulator, v, at, "fast", (20,), 8)[20].items():
                if quantity in ("rmse", "crps"):
                    check = f"2.1 kolmogorov64, {what}: {quantity}, lead 20, validation"
                    rows.append(Row(check, value / sigma, None, None, "σ"))
        model.emulator.refresh = usual
    show(rows, record("shipped", rows, (time.perf_counter() - begin) / 60))


if __name__ == "__main__":
    main()
