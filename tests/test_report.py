"""The page as a reader gets it: parsed, self-contained, harmless, complete, and with the right pixels in its frames."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import lapse
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Axis, Grid
from lapse.surrogate.baselines import persistence
from lapse.surrogate.figures import INK
from lapse.surrogate.film import Film, gather
from lapse.surrogate.pairs import pair
from lapse.surrogate.report import report
from lapse.surrogate.sprites import GREY, colour_scale, palette, picture, sprite

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Elements, text, and whether tags nest."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.text, self.scripts = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def sections(self):
        return [attrs["id"] for attrs in self.all("section")]

    @property
    def players(self):
        kinds = [a.get("type") for a in self.all("script")]
        return [json.loads(s) for s, kind in zip(self.scripts, kinds, strict=True) if kind == "application/json"]


@pytest.fixture
def plain(monkeypatch):
    """Leave the drawing out, which takes most of the time, where a test looks at something else."""
    monkeypatch.setattr("lapse.surrogate.report.svg", lambda figure: "data:image/svg+xml;base64,PHN2Zy8+")


def make(space=("y", "x"), M=6, inits=2, leads=5, variables=("u",), attrs=None, n=12):
    g = np.random.default_rng(0)
    time = np.datetime64("2001-01-01", "s") + np.arange(inits + leads) * np.timedelta64(6, "h")
    shape = tuple(n + 2 * i for i in range(len(space)))
    units = {"lat": "degrees_north", "lon": "degrees_east"}
    coords = {d: (d, np.linspace(1, 40, s), {"units": units.get(d, "m")}) for d, s in zip(space, shape, strict=True)}
    one = {"units": "m s-1"}
    truth = xr.Dataset(
        {v: (("time", *space), g.normal(size=(inits + leads, *shape)), one) for v in variables},
        coords={"time": time, **coords},
    )
    size = (inits, M, leads, *shape)
    fc = xr.Dataset(
        {v: (("init_time", "member", "lead_time", *space), g.normal(size=size), one) for v in variables},
        coords={"init_time": time[:inits], "lead_time": np.arange(1, leads + 1) * np.timedelta64(6, "h"), **coords},
        attrs=attrs or {},
    )
    return fc, truth


def self_contained(page):
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, name, attrs[name][:60])
        assert not any(name.startswith("on") for name in attrs)
    visible = re.sub(r"data:[a-z/+]+;base64,[A-Za-z0-9+/=]+", "", page.source)
    assert "http:" not in visible.replace("http-equiv", "")
    assert "url(" not in visible
    assert "@import" not in visible
    assert "fetch(" not in visible
    for attrs in page.all("img"):
        assert attrs["alt"]
        if attrs["src"].startswith("data:image/svg+xml"):
            svg = base64.b64decode(attrs["src"].split(",")[1]).decode()
            if svg == "<svg/>":
                continue
            assert all(link.startswith(("#", "data:image/png")) for link in re.findall(r'href="([^"]+)"', svg))
            assert set(re.findall(r"https?://[^\"<> ]+", svg)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
            assert "prefers-color-scheme:dark" in svg


def test_a_complete_page_is_complete(tmp_path):
    attrs = {"title": "A forecast", "lapse_seed": 7, "source": "m sha256:ab", "history": "then\nnow"}
    fc, truth = make(variables=("u", "v"), attrs=attrs)
    base = persistence(truth, fc["init_time"], fc["lead_time"])
    fc["residual"] = fc["u"].mean(["y", "x"]) ** 2
    path = tmp_path / "deep" / "r.html"
    assert report(fc, truth, path=path, baselines={"persistence": base}, model_card="# Card\nVRMSE 0.1") == path
    page = Page(path)
    self_contained(page)
    assert path.stat().st_size < 8e6
    assert page.sections == ["forecast", "fields", "scores", "spectra", "calibration", "physics", "table", "card"]
    assert [a["href"] for a in page.all("a")] == [f"#{s}" for s in page.sections]
    text = " ".join(page.text)
    facts = ("A forecast", "6 members, 5 leads to 30 h, 2 starts", "sha256:ab", "then\nnow", "VRMSE 0.1")
    for expected in (*facts, "CRPS/persistence"):
        assert expected in text, expected
    assert [len(p["panels"]) for p in page.players] == [5, 5]  # truth, mean, spread, two members
    assert page.players[0]["labels"] == ["lead 6 h", "lead 12 h", "lead 18 h", "lead 24 h", "lead 30 h"]
    assert [a["aria-label"] for a in page.all("input")] == ["lead time"] * 2
    assert any("residual" in a["alt"] for a in page.all("img"))


def test_the_scores_of_the_page_are_those_of_score(tmp_path, plain):
    fc, truth = make()
    s = lapse.score(fc, truth)
    given, made = (Page(report(fc, truth, scores, tmp_path / f"{i}.html")) for i, scores in enumerate((s, None)))
    # All but the line that says when: the two may be written in different minutes.
    told = [[line for line in page.text if not line.startswith("Written ")] for page in (given, made)]
    assert told[0] == told[1] and len(told[0]) == len(given.text) - 1
    assert f"{float(s['crps'][0, -1]):.3g}" in given.text


def test_without_a_truth_the_forecast_alone(tmp_path, plain):
    page = Page(report(make()[0], path=tmp_path / "r.html"))
    self_contained(page)
    assert page.sections == ["forecast", "fields", "spectra", "physics"]
    assert len(page.players[0]["panels"]) == 4


def test_one_member_shows_its_error_instead_of_a_spread(tmp_path, plain):
    fc, truth = make(M=1, inits=1)
    page = Page(report(fc, truth, path=tmp_path / "r.html"))
    assert page.sections == ["forecast", "fields", "scores", "spectra", "physics", "table"]
    assert [a["aria-label"] for a in page.all("canvas")] == ["truth, animated", "forecast, animated", "error, animated"]


def test_lines_in_one_dimension(tmp_path):
    fc, truth = make(space=("x",), n=40)
    truth["u"][:, 3] = np.nan
    page = Page(report(fc, truth, path=tmp_path / "r.html"))
    self_contained(page)
    (player,) = page.players
    assert len(player["curves"]) == 4
    frames = np.array(player["curves"][0]["frames"], dtype=float)
    np.testing.assert_allclose(frames, truth["u"][1:6], rtol=1e-3)
    mean = fc["u"][0].mean("member")
    low, high = np.array(player["band"], dtype=float)
    np.testing.assert_allclose((low + high)[:, 4:] / 2, mean[:, 4:], atol=1e-3)
    np.testing.assert_allclose((high - low)[:, 4:] / 2, fc["u"][0].std("member", ddof=1)[:, 4:], rtol=2e-3, atol=1e-3)


def test_land_is_grey_and_north_is_up():
    fc, truth = make(space=("lon", "lat"))
    truth = truth.isel(lat=slice(None, None, -1))
    truth["u"][:, 0, 0] = np.nan  # west, north
    pairs = pair(fc, truth)
    films, _ = gather(pairs, 0, None, None)
    images = picture(films[0].panels["truth"], pairs.grid)
    assert images.shape == (5, 14, 12)  # rows are latitudes
    np.testing.assert_array_equal(np.argwhere(np.isnan(images[0])), [[0, 0]])
    sheet = sprite(images, "viridis", -3, 3)
    rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.split(",")[1]))).convert("RGB"))
    for i in range(5):
        x, y = i % sheet.columns * sheet.width, i // sheet.columns * sheet.height
        assert tuple(rgb[y, x]) == GREY
        nearest = palette("viridis", 255)[int(np.clip((images[i, 3, 4] + 3) / 6, 0, 1) * 254 + 0.5)]
        np.testing.assert_allclose(rgb[y + 3, x + 4].astype(int), nearest.astype(int), atol=3)


def test_coarse_pixels_are_means_of_the_cells_with_data():
    u = np.arange(16.0).reshape(1, 4, 4)
    u[0, 0, 0] = np.nan
    u[0, 2:, 2:] = np.nan
    fine, coarse = sprite(u, "magma", 0, 16), sprite(u, "magma", 0, 16, coarsen=2)
    assert (fine.width, coarse.width) == (4, 2)
    rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(coarse.uri.split(",")[1]))).convert("RGB")).astype(int)
    assert tuple(rgb[1, 1]) == GREY
    mean = (1 + 4 + 5) / 3
    np.testing.assert_allclose(rgb[0, 0], palette("magma", 255)[round(mean / 16 * 254)], atol=3)


def test_colours_follow_the_sign_of_the_field():
    grid = Grid((Axis("x", (0.0, 1.0, 2.0, 3.0)),))
    g = np.random.default_rng(0)
    for values, spec, expected in (
        (g.normal(size=(3, 400)), None, "RdBu_r"),
        (g.normal(size=(3, 400)) + 300, None, "viridis"),
        (g.exponential(size=(3, 400)), None, "viridis"),
        (g.normal(size=(3, 400)) + 5, "vector", "RdBu_r"),
    ):
        film = Film("u", "1", [0, 1, 2], grid, panels={"truth": values.astype("f4")})
        film.signed = spec == "vector" or (values.min() < 0 and values.max() > 0)
        name, low, high = colour_scale(film, "truth")
        assert name == expected
        assert low < high
        if name == "RdBu_r":
            assert low == -high
    film.panels["spread"] = np.full((3, 400), np.nan, dtype="f4")
    assert colour_scale(film, "spread")[1:] == (0.0, 1.0)


def test_what_is_gathered_is_what_was_forecast():
    fc, truth = make(space=("lat", "lon"))
    films, (mean,) = gather(pair(fc, truth), 1, None, None)
    film = films[0]
    assert film.signed
    np.testing.assert_allclose(film.panels["ensemble mean"], fc["u"][1].mean("member"), atol=1e-6)
    np.testing.assert_allclose(film.panels["spread"], fc["u"][1].std("member", ddof=1), atol=1e-6)
    np.testing.assert_allclose(film.panels["member 1"], fc["u"][1, 1], atol=1e-6)
    np.testing.assert_allclose(film.panels["truth"], truth["u"][2:7], atol=1e-6)
    w = np.cos(np.deg2rad(fc["lat"]))
    area = fc["u"][1].weighted(w).mean(["lat", "lon"]).transpose("member", "lead_time")
    np.testing.assert_allclose(mean.members, area)
    np.testing.assert_allclose(mean.truth, truth["u"][2:7].weighted(w).mean(["lat", "lon"]))


def test_members_that_broke_are_not_shown(tmp_path, plain):
    fc, truth = make()
    flag = xr.DataArray(np.ones((2, 6), dtype="int8"), dims=("init_time", "member"))
    flag[:, 0] = 0
    broken = fc.where(flag.astype(bool)).assign(valid=flag)
    films, (mean,) = gather(pair(broken, truth), 0, None, None)
    assert list(films[0].panels)[3:] == ["member 1", "member 2"]
    assert np.isnan(mean.members[0]).all()
    page = Page(report(broken, truth, path=tmp_path / "r.html"))
    assert "5 of 6" in page.text


def test_texts_from_data_cannot_become_markup(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;$x_{$'
    fc, truth = make(attrs={"title": evil, "source": evil, "history": evil})
    fc, truth = fc.rename(u=evil), truth.rename(u=evil)
    for ds in (fc, truth):
        ds[evil].attrs["units"] = "</script>"
        ds["x"].attrs["units"] = evil
    base = persistence(truth, fc["init_time"], fc["lead_time"])
    page = Page(report(fc, truth, path=tmp_path / "r.html", baselines={evil: base}, model_card=evil))
    self_contained(page)
    assert len(page.all("script")) == 2  # the player's data, and the player
    assert evil in page.text
    fc, truth = make(space=("x",))
    page = Page(report(fc.rename(u=evil, x="</script>"), path=tmp_path / "line.html"))
    assert len(page.all("script")) == 2
    assert page.players[0]["axis"].startswith("</script>")


def test_physics_of_the_equation_is_shown(tmp_path, plain):
    grid = Grid.periodic_box(16)
    spec = FieldSpec((Variable("vorticity", "s-1"),), grid, 1.0, "s", equation="kolmogorov")
    g = np.random.default_rng(0)
    coords = {a.name: np.array(a.coordinates) for a in grid.axes}
    u = g.normal(size=(1, 3, 2, 16, 16))
    u -= u.mean(axis=(-2, -1), keepdims=True)
    dims = ("init_time", "member", "lead_time", "y", "x")
    times = {"init_time": [0.0], "lead_time": [1.0, 2.0]}
    fc = xr.Dataset({"vorticity": (dims, u, {"units": "s-1"})}, coords=times | coords)
    page = Page(report(fc, path=tmp_path / "r.html", spec=spec))
    alt = next(a["alt"] for a in page.all("img") if a["alt"].startswith("Budgets"))
    assert "enstrophy" in alt
    _, budgets = gather(pair(fc, None, spec=spec), 0, spec, lambda ds: (ds**2).mean(["y", "x"]))
    np.testing.assert_allclose(budgets[1].members, (u[0] ** 2).mean(axis=(-2, -1)))


def test_both_themes_are_readable():
    def luminance(colour):
        c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for name, pair_of in INK.items():
        if name == "rule":
            continue
        for colour, ground in zip(pair_of, ("#ffffff", "#1a2029"), strict=True):
            a, b = sorted((luminance(colour), luminance(ground)))
            assert (b + 0.05) / (a + 0.05) >= (4.5 if name in ("ink", "muted") else 3.0), (name, colour)


def test_a_big_grid_still_makes_a_small_page(tmp_path, plain):
    fc, _ = make(n=300, M=2, inits=1, leads=20)
    path = report(fc, path=tmp_path / "r.html")
    assert path.stat().st_size < 8e6
    assert Page(path).players[0]["panels"][0]["width"] < 302


def test_a_start_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(IndexError, match="2 starts"):
        report(make()[0], path=tmp_path / "r.html", start=2)
