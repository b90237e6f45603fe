import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy import optimize, stats

from nnopt.lab import plots

# Machado, Oliveira and Fernandes 2009: linear RGB as seen without red, green or blue cones.
VISION = {
    "common": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
GROUPS = {
    group: {row["method"]: row["color"] for row in rows}
    for group, rows in itertools.groupby(plots.METHODS, key=lambda row: row["group"])
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.fixture(autouse=True)
def style():
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    with mpl.rc_context():
        plots.use_style()
        yield
    plt.close("all")
    plt.switch_backend(backend)


def lab(shade, vision):
    values = np.array(mpl.colors.to_rgb(shade))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("group", GROUPS)
def test_methods_of_one_picture_differ_with_any_colour_vision(group, vision):
    for one, other in itertools.combinations(GROUPS[group].values(), 2):
        assert np.linalg.norm(lab(one, vision) - lab(other, vision)) > 15, (one, other)


def test_a_colour_serves_once_in_a_group_and_a_method_has_one_colour():
    seen = {}
    for group in GROUPS.values():
        assert len(set(group.values())) == len(group)
        for name, shade in group.items():
            assert seen.setdefault(plots._plain(name), shade) == shade


def test_color_knows_a_method_by_any_spelling_and_refuses_others():
    assert plots.color("one-cycle") == plots.color("ONE_CYCLE") == plots.color("OneCycle")
    with pytest.raises(ValueError, match="`name` must be one of adagrad, adam"):
        plots.color("adamm")


def test_labels_can_be_read_on_white():
    for shade in plots.CYCLE:
        text = np.array(mpl.colors.to_rgb(plots._readable(shade)))
        assert 1.05 / (plots._luminance(text) + 0.05) >= 4.5
    assert plots._luminance(np.ones(3)) == pytest.approx(1)


def test_style_selects_no_backend():
    assert "backend" not in plots.STYLE.read_text()


def test_band_is_scipys_t_interval_at_each_point():
    values = np.random.default_rng(0).normal(size=(7, 4))
    mean, low, high = plots.mean_interval(values, 0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose([low, high], expected)


def test_mean_leaves_out_what_is_not_finite_without_a_warning():
    values = np.array([[1.0, 1.0, np.nan], [3.0, np.inf, np.nan]])
    mean, low, high = plots.mean_interval(values)
    np.testing.assert_array_equal(mean, [2.0, 1.0, np.nan])
    assert low[1] == high[1] == 1.0
    assert low[0] < 2 < high[0]


def test_curves_draw_mean_and_band_in_the_colour_of_the_method():
    ax = plt.subplots()[1]
    values = np.array([[3.0, 2.0, 1.0], [5.0, 3.0, 1.0]])
    line = plots.curves(ax, [1, 2, 3], values, label="AdamW", linestyle="--")
    np.testing.assert_array_equal(line.get_ydata(), [4.0, 2.5, 1.0])
    assert line.get_color() == plots.color("adamw")
    assert line.get_linestyle() == "--"
    (band,) = ax.collections
    half = stats.t.ppf(0.975, 1) * 1.0
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(4 + half)
    plots.curves(ax, [1, 2, 3], values[0], label="mine")
    assert len(ax.collections) == 1


def test_lines_without_a_fixed_colour_take_the_next_of_the_cycle():
    ax = plt.subplots()[1]
    drawn = [plots.curves(ax, [0, 1], [[0, number]], label=f"depth {number}").get_color() for number in range(3)]
    assert drawn == list(plots.CYCLE[:3])
    assert plots.curves(ax, [0, 1], [[0, 1]], label="adam", color="red").get_color() == "red"


def test_diverged_runs_are_counted_in_the_label():
    ax = plt.subplots()[1]
    line = plots.curves(ax, [0, 1], [[1, 2], [1, np.nan], [1, np.inf]], label="sgd")
    assert line.get_label() == "sgd (2 of 3 diverged)"
    assert line.get_color() == plots.color("sgd")
    np.testing.assert_array_equal(line.get_ydata(), [1, 2])


@pytest.mark.parametrize("values", [np.zeros((2, 4)), np.zeros((2, 2, 3)), np.zeros(2)])
def test_curves_refuse_shapes_that_do_not_fit(values):
    with pytest.raises(ValueError, match="`values` must be of shape"):
        plots.curves(plt.subplots()[1], [0, 1, 2], values)


def test_spread_equals_the_best_arrangement_found_by_a_solver():
    random = np.random.default_rng(1)
    for count in (1, 2, 5, 8):
        wanted = np.sort(random.uniform(0.3, 0.7, size=count))
        ours = plots.spread(wanted, 0.06)
        apart = {"type": "ineq", "fun": lambda x: np.diff(x) - 0.06}
        best = optimize.minimize(lambda x, w: np.sum((x - w) ** 2), wanted, args=(wanted,), constraints=[apart])
        np.testing.assert_allclose(ours, best.x, atol=1e-4)


def test_spread_stays_inside_as_long_as_there_is_room():
    placed = plots.spread([0.97, 0.98, 0.99], 0.1)
    np.testing.assert_allclose(placed, [0.8, 0.9, 1.0])
    np.testing.assert_allclose(np.diff(plots.spread(np.zeros(20), 0.1)), 0.1)
    assert len(plots.spread([], 0.1)) == 0


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_at_line_ends_do_not_overlap_and_lie_within_the_figure(scale):
    figure, ax = plt.subplots()
    ax.set_yscale(scale)
    for number in range(8):
        plots.curves(ax, [0, 1, 2], [[3, 2, 1 + 0.001 * number]], label=f"a method called {number}")
    plots.curves(ax, [0, 1, 2], np.full((2, 3), np.nan), label="lost")
    plots.curves(ax, [0, 1], [[1, 2]], label="short")
    ax.plot([0, 1], [1, 1])
    labels = plots.label_lines(ax)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 10
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 and box.x0 >= ax.get_window_extent().x1 for box in boxes)
    texts = [label.get_text() for label in labels]
    assert texts[:8] == [f"a method called {number}" for number in range(8)]
    assert texts[-1] == "lost (2 of 2 diverged)"


def test_a_label_stands_at_the_height_at_which_its_line_ends():
    figure, ax = plt.subplots()
    ax.plot([0, 1], [0, 0], label="low")
    ax.plot([0, 1], [0, 1], label="high")
    labels = plots.label_lines(ax)
    figure.draw_without_rendering()
    for label, height in zip(labels, [0, 1]):
        box = label.get_window_extent()
        assert (box.y0 + box.y1) / 2 == pytest.approx(ax.transData.transform((1, height))[1], abs=2)


def test_small_multiples_share_their_scales_and_hide_what_is_unused():
    figure, panels = plots.small_multiples(5, columns=3)
    assert len(panels) == len(figure.axes) == 5
    panels[0].plot([0, 1], [0, 7])
    assert panels[4].get_ylim() == panels[0].get_ylim()
    assert figure.get_size_inches()[0] == plots.WIDTH
    apart = plots.small_multiples(2, columns=3, share_y=False)[1]
    apart[0].plot([0, 1], [0, 7])
    assert apart[1].get_ylim() != apart[0].get_ylim()


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 3, "columns": 0}, {"count": 3, "height": 0}])
def test_small_multiples_name_the_argument_that_is_wrong(arguments):
    with pytest.raises(ValueError, match=f"`{list(arguments)[-1]}` must be"):
        plots.small_multiples(**arguments)


def test_intervals_draw_runs_mean_and_t_interval_by_row():
    ax = plt.subplots()[1]
    values = np.array([[1.0, 2.0, 4.0], [3.0, np.nan, 5.0]])
    plots.intervals(ax, ["step", "other"], values)
    dots, interval, mean = ax.get_lines()[:3]
    assert dots.get_xdata().tolist() == [1, 2, 4]
    np.testing.assert_allclose(interval.get_xdata(), stats.ttest_1samp(values[0], 0).confidence_interval(0.95))
    assert mean.get_xdata()[0] == pytest.approx(7 / 3)
    assert mean.get_color() == plots.color("step")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["step", "other (1 of 3 diverged)"]
    with pytest.raises(ValueError, match="one name for each"):
        plots.intervals(ax, ["step"], values)


def test_saved_file_is_the_same_each_time_small_and_of_the_page_width(tmp_path):
    figure, ax = plt.subplots()
    plots.curves(ax, [0, 1, 2], np.arange(9).reshape(3, 3), label="adam")
    plots.save(figure, "one", tmp_path)
    plots.save(figure, "two", tmp_path)
    first, second = tmp_path / "one.png", tmp_path / "two.png"
    assert first == tmp_path / "one.png"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.size[0] >= 700
        assert "Software" not in image.info
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_save_goes_to_the_figures_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NNOPT_FIGURES", str(tmp_path / "pictures"))
    plots.save(plt.figure(), "07_empty")
    assert (tmp_path / "pictures" / "07_empty.png").exists()


@pytest.mark.thorough
def test_rich_figures_are_cut_to_a_palette_and_too_rich_ones_refused(tmp_path):
    random = np.random.default_rng(3)
    figure, ax = plt.subplots()
    x, y = np.meshgrid(np.linspace(-1, 1, 300), np.linspace(-1, 1, 300))
    ax.imshow(np.sin(9 * x * y) + x, aspect="auto", interpolation="bilinear", cmap="viridis")
    ax.plot(*random.uniform(0, 300, size=(2, 60)))
    plots.save(figure, "rich", tmp_path)
    with Image.open(tmp_path / "rich.png") as image:
        assert image.mode == "P"
    assert (tmp_path / "rich.png").stat().st_size < plots.LARGEST_FILE
    ax.imshow(random.uniform(size=(1000, 1000)), aspect="auto", interpolation="nearest")
    with pytest.raises(ValueError, match="must fit into 100000 bytes"):
        plots.save(figure, "noise", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rich.png"]


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a.png", None, 7])
def test_save_refuses_names_that_are_no_plain_file_names(tmp_path, name):
    with pytest.raises(ValueError, match="`name` must be a file name"):
        plots.save(plt.figure(), name, tmp_path)
