"""The book's one look: a colour for each method, bands over seeds, labels at the ends of lines, small PNG files.

Call `use_style()` once, draw with matplotlib as usual or with the functions here, and `save` at the end.
"""

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import optimize, stats

from nnopt.checks import check_integer, check_number
from nnopt.lab.results import figures_folder, read, write_whole

# Okabe and Ito 2008, distinct with any colour vision; their yellow is too light for lines on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#666666"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)

WIDTH = 7.0  # inches: 700 pixels on a page of 100 to the inch
LABEL_SIZE = 9  # points
LARGEST_FILE = 100_000  # bytes
STYLE = Path(__file__).with_name("book.mplstyle")
# Methods that appear in one picture stand in one group; a colour serves once in a group.
METHODS = read(Path(__file__).with_name("colors.csv"))


def use_style():
    """Sets matplotlib's defaults to the book's look. The backend stays as it is.

    Example:

    >>> with mpl.rc_context():
    ...     use_style()
    ...     mpl.rcParams["axes.titlelocation"]
    'left'
    """
    plt.style.use(STYLE)
    mpl.rcParams["axes.prop_cycle"] = mpl.cycler(color=CYCLE)


def color(name):
    """Returns the colour that a method has through the whole book.

    Args:
        name: A method in colors.csv, such as "adam" or "one-cycle"; case, spaces, "-" and "_" do not matter.

    Raises:
        ValueError: The method has no colour yet.

    Example:

    >>> color("Adam"), color("one-cycle") == color("OneCycle")
    ('#D55E00', True)
    """
    if not (found := _fixed_color(name)):
        known = sorted({row["method"] for row in METHODS})
        raise ValueError(f"`name` must be one of {', '.join(known)}. Received: name={name!r}")
    return found


def curves(ax, x, values, label=None, *, color=None, confidence=0.95, **line):
    """Draws the mean of several runs as a line, and the t interval of the mean at each point as a band.

    Runs that became NaN or infinite take no part from there on, and the label says how many there are.

    Args:
        ax: Axes.
        x: Shape (points,).
        values: Shape (runs, points), or (points,) for a single run without a band.
        label: Name of the line. That of a method in colors.csv gives the line its colour.
        color: Colour, if not the method's or the next of the cycle.
        confidence: Level of the band, in (0, 1).
        **line: Passed to `ax.plot`.

    Returns:
        The line.

    Raises:
        ValueError: Shapes do not fit, or `confidence` is out of range.

    Example:

    >>> figure, ax = plt.subplots()
    >>> line = curves(ax, [1, 2, 3], [[3.0, 2.0, 1.0], [3.2, 2.1, 1.2]], label="Adam")
    >>> line.get_color()
    '#D55E00'
    >>> plt.close(figure)
    """
    x, values = np.asarray(x), np.atleast_2d(np.asarray(values, dtype="float64"))
    if values.ndim != 2 or x.shape != values.shape[1:]:
        raise ValueError(
            "`values` must be of shape (runs, points) or (points,), and `x` of shape (points,). "
            f"Received: shapes {values.shape} and {x.shape}"
        )
    mean, low, high = mean_interval(values, confidence)
    diverged = int(np.sum(~np.isfinite(values[:, -1])))
    name = f"{label} ({diverged} of {len(values)} diverged)" if diverged and label else label
    (drawn,) = ax.plot(x, mean, label=name, color=color or _fixed_color(label), **line)
    if len(values) > 1:
        ax.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    return drawn


def mean_interval(values, confidence=0.95):
    """Returns the mean over runs and the ends of its t interval, each of shape (points,); see `curves`.

    Values that are NaN or infinite are left out. Of one value the interval has no width, of none all three are NaN.

    Example:

    >>> mean, low, high = mean_interval([[1.0], [2.0], [3.0]])
    >>> round(float(mean[0]), 3), round(float(low[0]), 3), round(float(high[0]), 3)
    (2.0, -0.484, 4.484)
    """
    confidence = check_number("confidence", confidence, above=0, below=1)
    values = np.ma.masked_invalid(np.asarray(values, dtype="float64"))  # (runs, points)
    runs, mean = values.count(axis=0), np.ma.filled(values.mean(axis=0), np.nan)
    half = stats.t.ppf((1 + confidence) / 2, runs - 1) * values.std(axis=0, ddof=1) / np.sqrt(runs)
    half = np.ma.filled(half, 0.0)
    return mean, mean - half, mean + half


def label_lines(ax):
    """Writes each line's label at its end, right of the axes, in the line's colour; near ones are moved apart.

    Call it last: later changes of the axes' limits or size would move the lines away from their labels.

    Args:
        ax: Axes, whose labelled lines are written (those whose label starts with "_" have none).

    Returns:
        The labels, from bottom to top.

    Example:

    >>> figure, ax = plt.subplots()
    >>> lines = ax.plot([0, 1], [1.0, 1.1], label="a") + ax.plot([0, 1], [1.0, 1.0], label="b")
    >>> [label.get_text() for label in label_lines(ax)]
    ['b', 'a']
    >>> plt.close(figure)
    """
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    ax.figure.draw_without_rendering()  # settles the layout, on which heights in pixels depend
    ends = sorted(((*_end(ax, line), line) for line in lines), key=lambda end: end[1])
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    gap = 1.25 * LABEL_SIZE * ax.figure.dpi / 72 / ax.get_window_extent().height
    heights = spread([height for _, height, _ in ends], gap)
    labels = []
    for (right, height, line), placed in zip(ends, heights):
        text = ax.annotate(
            line.get_label(), (right, height), (1.03, placed), "axes fraction", "axes fraction",
            color=_readable(line.get_color()), fontsize=LABEL_SIZE, va="center", annotation_clip=False,
        )  # fmt: skip
        labels.append(text)
        if abs(placed - height) > gap / 4 or right < 0.97:
            ends = [right + 0.005, 1.025], [height, placed]
            shade, axes = line.get_color(), ax.transAxes
            ax.plot(*ends, color=shade, transform=axes, linewidth=0.7, clip_on=False, label="_leader")
    return labels


def spread(positions, gap):
    """Returns positions at least `gap` apart, in the given order, that lie as near the wanted ones as can be.

    The result minimizes the sum of squared shifts, by pooling neighbours; it stays within 0 ... 1 if it can.

    Args:
        positions: Wanted positions, ascending.
        gap: Least distance, >= 0.

    Example:

    >>> [round(float(position), 3) for position in spread([0.5, 0.5, 0.9], gap=0.1)]
    [0.45, 0.55, 0.9]
    """
    if not len(positions):
        return np.zeros(0)
    offsets = gap * np.arange(len(positions))
    pooled = optimize.isotonic_regression(np.asarray(positions, dtype="float64") - offsets).x
    return np.clip(pooled, 0, max(1 - offsets[-1], 0)) + offsets


def small_multiples(count, columns=3, *, height=2.0, share_x=True, share_y=True):
    """Returns a figure and a list of `count` axes in a grid, which share their scales so that panels compare.

    Args:
        count: Number of panels, >= 1.
        columns: Panels in a row, >= 1.
        height: Height of a row in inches, > 0.
        share_x: Whether all panels have one x axis.
        share_y: Whether all panels have one y axis.

    Example:

    >>> figure, panels = small_multiples(5)
    >>> len(panels)
    5
    >>> plt.close(figure)
    """
    count, columns = check_integer("count", count, at_least=1), check_integer("columns", columns, at_least=1)
    height = check_number("height", height, above=0)
    columns = min(count, columns)
    rows = -(-count // columns)
    size = (WIDTH, rows * height + 0.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharex=share_x, sharey=share_y, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.remove()
    for panel in panels[count - columns : count]:
        panel.xaxis.set_tick_params(labelbottom=True)
    return figure, panels[:count]


def intervals(ax, names, values, *, confidence=0.95):
    """Draws for each setting its runs as faint dots and their mean with its t interval, one row for each.

    Args:
        ax: Axes; the values stand on x, the first name on top.
        names: One name for each setting; those of methods have the methods' colours.
        values: Shape (settings, runs). Runs that are NaN or infinite are left out and counted in the name.
        confidence: Level of the interval, in (0, 1).

    Raises:
        ValueError: Shapes do not fit, or `confidence` is out of range.

    Example:

    >>> figure, ax = plt.subplots()
    >>> intervals(ax, ["constant", "step"], [[0.2, 0.3, 0.25], [0.1, 0.12, 0.11]])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['constant', 'step']
    >>> plt.close(figure)
    """
    values = np.asarray(values, dtype="float64")
    if values.ndim != 2 or len(names) != len(values):
        raise ValueError(
            "`values` must be of shape (settings, runs), with one name for each setting. "
            f"Received: shape {values.shape} and {len(names)} names"
        )
    mean, low, high = mean_interval(values.T, confidence)
    ticks = []
    for row, (name, runs) in enumerate(zip(names, values)):
        shade = _fixed_color(name) or CYCLE[row % len(CYCLE)]
        ax.plot(runs, np.full(len(runs), row + 0.25), "o", color=shade, alpha=0.4, markersize=4, markeredgewidth=0)
        ax.plot([low[row], high[row]], [row, row], color=shade, linewidth=2.5, solid_capstyle="butt")
        ax.plot(mean[row], row, "o", color=shade, markersize=7, markeredgecolor="white")
        diverged = int(np.sum(~np.isfinite(runs)))
        ticks.append(f"{name} ({diverged} of {len(runs)} diverged)" if diverged else str(name))
    ax.set_yticks(range(len(ticks)), ticks)
    ax.set_ylim(len(ticks) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def save(figure, name, folder=None):
    """Writes a figure as a PNG below 100 kB; the same figure gives the same bytes again.

    Returns nothing, so that a notebook's cell may end with it and show the figure alone.

    Where the file would be larger its colours are cut to a palette of 256, and then of 64.

    Args:
        figure: A matplotlib figure.
        name: Name of the file without ".png", such as "07_schedules".
        folder: Where to; None for `nnopt.lab.results.figures_folder()`.

    Raises:
        ValueError: `name` is no plain file name, or the figure is too rich even so: draw fewer points, or rasterize.

    Example:

    >>> import tempfile
    >>> figure, ax = plt.subplots()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(figure, "empty", folder)
    ...     [path.name for path in Path(folder).iterdir()]
    ['empty.png']
    >>> plt.close(figure)
    """
    if not isinstance(name, str) or not name or Path(name).name != name or name.endswith(".png"):
        raise ValueError(f'`name` must be a file name without folder and ".png". Received: name={name!r}')
    folder = figures_folder() if folder is None else Path(folder)
    drawn = io.BytesIO()
    # Without the name of the software the bytes do not change with its version.
    figure.savefig(drawn, format="png", dpi=160, metadata={"Software": None})
    image, data = Image.open(drawn).convert("RGB"), drawn.getvalue()
    for colors in (256, 64):
        if len(data) >= LARGEST_FILE:
            reduced = io.BytesIO()
            image.quantize(colors, dither=Image.Dither.NONE).save(reduced, format="png", optimize=True)
            data = reduced.getvalue()
    if len(data) >= LARGEST_FILE:
        raise ValueError(
            f"`figure` must fit into {LARGEST_FILE} bytes: draw fewer points, or a smaller figure. "
            f"Received: {len(data)} bytes in 64 colours"
        )
    write_whole(folder / f"{name}.png", data)


def _plain(name):
    return "".join(letter for letter in str(name).lower() if letter not in " -_")


_COLORS = {_plain(row["method"]): row["color"] for row in METHODS}


def _fixed_color(name):
    return _COLORS.get(_plain(name))


def _end(ax, line):
    """Where a line ends, as fractions of the axes; on top if it has no finite point."""
    x, y = (np.asarray(axis, dtype="float64") for axis in line.get_data(orig=False))
    with np.errstate(invalid="ignore"):
        places = ax.transAxes.inverted().transform(line.get_transform().transform(np.column_stack([x, y])))
    places = places[np.isfinite(places).all(axis=1)]
    return tuple(np.clip(places[-1], 0, 1)) if len(places) else (1.0, 1.0)


def _readable(shade):
    """Returns the colour, darkened until text in it stands out from white by 4.5 : 1 (WCAG 2.1)."""
    red_green_blue = np.array(mpl.colors.to_rgb(shade))
    while 1.05 / (_luminance(red_green_blue) + 0.05) < 4.5:
        red_green_blue = red_green_blue * 0.95
    return mpl.colors.to_hex(red_green_blue)


def _luminance(red_green_blue):
    linear = np.where(red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
