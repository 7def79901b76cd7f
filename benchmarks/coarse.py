"""Other parameters of the equation, for a model that starts from a coarse run of its solver (`emulator.coarse`).

    python benchmarks/coarse.py [--size 64] [--name lapse-coarse-small] [--seed 1] [--minutes 20]

The model is one of the forecast benchmark's, trained there or here. The solver runs on the data's grid at
parameters that no network saw, from states of its own climate at them; the fast mode follows at the training
parameters, and with the coarse run at the new ones (`Model.at`). The coarse run alone, at the new parameters, stands
beside them. RMSE of the mean of the members and CRPS over the standard deviation of the flow at hand; power in three
bands of a member's last frame over the truth's.
"""

import argparse
import time

import torch
from contenders import COARSE, emulate, prepare, recipe, solve, train
from forecast import LEADS, WORK, evaluate

from lapse.physics.equation import Equation
from lapse.surrogate.coarse import CoarseSolver
from lapse.surrogate.law import law
from record import Row, quick, record, show

OTHERS = {"forcing": (1.5,), "viscosity": (0.7, 1.67), "drag": (3.0,)}  # times those of the training data
STARTS = 2 if quick() else 8
JUDGED = 10  # frames


def truth(equation: Equation, interval: float) -> torch.Tensor:
    """Frames ``(STARTS, 1 + LEADS, C, *space)`` from states of the equation's climate."""
    u = equation.spin_up(torch.Generator().manual_seed(5), STARTS, 2.0 if quick() else 16.0, torch.float32)
    frames = [u]
    for _ in range(LEADS):
        frames.append(equation.advance(frames[-1], interval))
    return torch.stack(frames, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, choices=(64, 256))
    parser.add_argument("--name", choices=("lapse-coarse", "lapse-coarse-small"), default="lapse-coarse-small")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=0.05 if quick() else 20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    path, size = prepare(options.size, WORK)
    name, seed, minutes = options.name, options.seed, options.minutes
    folder = WORK / ("quick-coarse" if quick() else f"{size}-{minutes:g}")
    folder = folder / f"{name}-{seed}-{recipe(name, size, minutes)}"
    _, data, _, emulator = train(name, size, seed, minutes, path, folder)
    assert emulator is not None
    own, rows = law(data.spec), []
    for parameter, factors in OTHERS.items():
        for factor in factors:
            change = {parameter: factor * data.spec.parameters[parameter]}
            wanted = law(data.spec, change)
            u = truth(wanted, data.spec.interval)
            alone = solve(CoarseSolver(data.spec, **COARSE.get(size, COARSE[64])).at(change))
            emulator.obey(own, own)
            found = {"as it is": evaluate(emulate(emulator, "fast"), data, u, "clean")}
            emulator.obey(own, wanted)
            found["gone along"] = evaluate(emulate(emulator, "fast"), data, u, "clean")
            found["the coarse run alone"] = evaluate(alone, data, u, "clean", 1)
            what = f"3.5 {name}, {size}², {parameter} × {factor:g}"
            for how, scores in found.items():
                for lead in sorted({1, JUDGED, LEADS}):
                    for q in ("rmse", "crps"):
                        value = scores["leads"][lead - 1][q]
                        rows.append(Row(f"{what}, {how}: {q}, lead {lead}", value, None, None, "σ"))
            for q in ("rmse", "crps"):
                a, b = (found[how]["leads"][JUDGED - 1][q] for how in ("gone along", "as it is"))
                rows.append(Row(f"{what}: {q} gone along / as it is, lead {JUDGED}", a / b, None, "<= 0.45", "ratio"))
            away = max(abs(b - 1) for b in found["gone along"]["bands"])
            rows.append(Row(f"{what}: largest change of a band, lead {LEADS}", away, None, "<= 0.1", "change"))
    show(rows, record("coarse", rows, (time.perf_counter() - begin) / 60, stage=f"{options.size}-{name}"))


if __name__ == "__main__":
    main()
