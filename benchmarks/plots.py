"""Plots of figures that grow with something: one PNG, a panel per question (extra `bench`: matplotlib)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aromni_jax.errors import UserError

Point = tuple[float, float, float, float]
"""x; median, lowest and highest y."""


@dataclass(frozen=True)
class Panel:
    """Lines over one x axis, which is logarithmic; y begins at zero."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[Point]]


def draw(path: pathlib.Path, panels: Sequence[Panel], caption: str) -> None:
    """Write the panels side by side with `caption` (date, hardware) below; UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plots need matplotlib: pip install -e '.[bench]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.7), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for name, points in panel.lines.items():
            xs, ys, low, high = zip(*points, strict=True)
            spread = [[y - a for y, a in zip(ys, low, strict=True)], [b - y for y, b in zip(ys, high, strict=True)]]
            axis.errorbar(xs, ys, yerr=spread, marker="o", markersize=4, capsize=3, label=name)
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, xscale="log")
        axis.set_ylim(0, 1.1 * max(point[3] for points in panel.lines.values() for point in points))
        places = sorted({point[0] for points in panel.lines.values() for point in points})
        axis.set_xticks(places, [f"{place:,.0f}" for place in places])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.grid(alpha=0.3)
        if len(panel.lines) > 1:
            axis.legend(frameon=False)
    figure.text(0.005, 0.01, caption, fontsize=7, color="0.4")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
