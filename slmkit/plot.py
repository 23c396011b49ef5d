"""Pictures: curves over steps, histograms, and spectra side by side. The only file that knows matplotlib and Pillow.

It draws what it is given, plain numbers, into bytes or arrays; it knows nothing of runs or speech, needs no screen and
leaves no global state.

Example:
    png = curves([Panel("loss", {"train": ([1, 2], [3.0, 2.5])})], title="run", marks={100: "2 processes"})
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

PANEL_INCHES = (10.0, 3.2)
DPI = 110
PNG_COLOURS = 128
DARK, LIGHT = "#1b1e24", "#cdd3da"  # ground and text of spectra
HISTOGRAMS_A_ROW, HISTOGRAM_BINS = 4, 20
MAX_LEGEND = 16  # curves of a panel that get a line in its legend


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis: name -> (x, y). Those in `dashed` are drawn with points and dashes."""

    label: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    dashed: frozenset[str] = field(default_factory=frozenset)


def curves(panels: Sequence[Panel], *, title: str, marks: Mapping[int, str], x_label: str = "step") -> bytes:
    """PNG of the panels below each other, with a line across all of them at each of `marks`, labelled in the first."""
    figure = _figure(PANEL_INCHES[0], PANEL_INCHES[1] * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(title)
    for panel, axis in zip(panels, axes, strict=True):
        for name, (x, y) in panel.curves.items():
            style = {"linestyle": "--", "marker": "o", "markersize": 3} if name in panel.dashed else {"linewidth": 1.1}
            axis.plot(x, y, label=name, **style)
        for mark in marks:
            axis.axvline(mark, color="0.5", linestyle=":", linewidth=1)
        axis.set_ylabel(panel.label)
        axis.grid(alpha=0.25)
        if 0 < len(panel.curves) <= MAX_LEGEND:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", frameon=False)
    for mark, text in marks.items():
        axes[0].annotate(
            text, (mark, 1.0), xycoords=("data", "axes fraction"), rotation=90, va="top", fontsize="x-small"
        )
    axes[-1].set_xlabel(x_label)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def scatter(
    groups: Mapping[str, Sequence[tuple[float, float, str]]], *, title: str, x_label: str, y_label: str
) -> bytes:
    """PNG of labelled points (x, y, label), a colour for each group; x > 0 is on a logarithmic scale."""
    figure = _figure(PANEL_INCHES[0], 1.6 * PANEL_INCHES[1])
    axis = figure.subplots()
    axis.set_title(title)
    for name, points in groups.items():
        axis.scatter([x for x, _, _ in points], [y for _, y, _ in points], label=name, s=36)
    everywhere = sorted(point for points in groups.values() for point in points)
    for number, (x, y, label) in enumerate(everywhere):  # neighbours have their labels on different sides
        offset = (5, 4 if number % 2 else -10)
        axis.annotate(label, (x, y), xytext=offset, textcoords="offset points", fontsize="x-small")
    axis.set_xscale("log")
    for each in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        each(lambda value, place: f"{value:g}")  # 0.2 and 30, not powers of ten
    axis.margins(x=0.12, y=0.1)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.25, which="both")
    if len(groups) <= MAX_LEGEND:
        axis.legend(fontsize="small", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def histograms(columns: Mapping[str, Sequence[float]]) -> bytes:
    """PNG of the distributions of the values of each column, four beside each other."""
    num_rows = -(-len(columns) // HISTOGRAMS_A_ROW)
    figure = _figure(3.0 * HISTOGRAMS_A_ROW, 2.3 * num_rows)
    axes = figure.subplots(num_rows, HISTOGRAMS_A_ROW, squeeze=False).flatten()
    for axis, (name, values) in zip(axes, columns.items(), strict=False):
        axis.hist(values, bins=HISTOGRAM_BINS, color="#4466aa")
        axis.set_title(name, fontsize="medium")
        axis.locator_params(axis="x", nbins=4)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def spectra(pictures: Mapping[str, npt.NDArray[Any]], *, sec_per_column: float) -> npt.NDArray[np.uint8]:
    """RGB image [height, width, 3] of `pictures` below each other, on one scale of time and of colour, on a dark ground
    that suits light and dark pages.

    Each is float [bands, columns] in dB, the lowest band first.
    """
    longest = max(picture.shape[1] for picture in pictures.values())
    loudest = max(float(picture.max(initial=-np.inf)) for picture in pictures.values())
    quietest = min(float(picture.min(initial=np.inf)) for picture in pictures.values())
    height = 1.7 * len(pictures)
    figure = _figure(5.6, height, layout=None)  # "constrained" finds about these margins, in twice the time
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.45 / height, top=1 - 0.25 / height, hspace=0.3)
    axes = figure.subplots(len(pictures), 1, sharex=True, squeeze=False)[:, 0]
    for (name, picture), axis in zip(pictures.items(), axes, strict=True):
        extent = (0.0, picture.shape[1] * sec_per_column, 0.0, float(picture.shape[0]))
        axis.imshow(picture, origin="lower", aspect="auto", extent=extent, vmin=quietest, vmax=loudest, cmap="magma")
        axis.set_xlim(0.0, longest * sec_per_column)
        axis.set_title(name, fontsize="medium", color=LIGHT)
        axis.set_ylabel("mel band", color=LIGHT)
        axis.tick_params(colors=LIGHT)
        axis.set_facecolor(DARK)
    axes[-1].set_xlabel("seconds", color=LIGHT)
    figure.set_facecolor(DARK)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """PNG of an RGB image [height, width, 3] in at most `PNG_COLOURS`: a third of the size, and hard to tell apart."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).quantize(PNG_COLOURS, dither=Image.Dither.NONE).save(buffer, format="png")
    return buffer.getvalue()


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure
