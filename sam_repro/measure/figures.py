"""Pictures of what was measured, as PNG and SVG beside the numbers. Needs matplotlib, the extra ``figures``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write
from ..schema import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z_LIMITS = (0.0, 4.5)  # KDD'24, A.2: "The z-axis range is fixed from 0 to 4.5"
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "sam-repro"}


def needed() -> None:
    """UserError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("The pictures need matplotlib: pip install 'sam-repro[figures]'.") from error


def save(figure: Figure, path: Path) -> None:
    """Write ``<path>.png`` and ``<path>.svg``."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
            write(path.with_name(f"{path.name}.{kind}"), buffer.getvalue())


def draw_landscape(found: dict[str, Any], path: Path) -> list[Path]:
    """A landscape as a surface and as contours, a line as a line: pictures next to ``path``, without its suffix."""
    which = f"{found['samples']:,}" + (f" of {found['of']:,}" if found["samples"] < found["of"] else "")
    layer = "whole model" if found["layer"] == "all" else found["layer"]
    title = f"{layer} ({found['optimizer']}, {found['model']} on {found['dataset']})\ntraining loss of {which} samples"
    views = {"": line} if len(found["y"]) == 1 else {"-surface": surface, "-contour": contour}
    pictures = {suffix: view(found, title) for suffix, view in views.items()}
    made = [path.with_name(path.name + suffix) for suffix in pictures]
    for figure, target in zip(pictures.values(), made, strict=True):
        save(figure, target)
    return made


def surface(found: dict[str, Any], title: str) -> Figure:
    """The 3-D view of KDD'24, Fig. 2: the loss axis from 0 to 4.5, nothing drawn above it."""
    import numpy as np

    figure, axes = _figure(title, projection="3d")
    x, y, z = found["x"], found["y"], np.array(found["loss"], dtype=float)
    fine_x, fine_y = (np.linspace(places[0], places[-1], 4 * len(places) - 3) for places in (x, y))
    z = np.array([np.interp(fine_x, x, row) for row in z])  # straight lines between the points, for a clean rim at the top
    z = np.array([np.interp(fine_y, y, column) for column in z.T]).T
    low, high = Z_LIMITS
    # Rasterised: thousands of facets are too many for an SVG.
    shades = {"cmap": "viridis", "vmin": low, "vmax": high, "axlim_clip": True, "antialiased": False, "rasterized": True}
    axes.plot_surface(*np.meshgrid(fine_x, fine_y), z, rcount=len(fine_y), ccount=len(fine_x), linewidth=0, **shades)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), zlim=Z_LIMITS, xlabel="α", ylabel="β", zlabel="loss")
    axes.view_init(elev=30, azim=-58)
    axes.set_box_aspect((1, 1, 0.8), zoom=0.88)
    return figure


def contour(found: dict[str, Any], title: str) -> Figure:
    """Lines of equal loss, a quarter apart, with the weights themselves as a cross."""
    import numpy as np

    figure, axes = _figure(title)
    levels = np.linspace(*Z_LIMITS, 19)
    shades = axes.contourf(found["x"], found["y"], np.array(found["loss"], dtype=float), levels, cmap="viridis", extend="max")
    axes.contour(found["x"], found["y"], np.array(found["loss"], dtype=float), levels, colors="white", linewidths=0.3)
    axes.plot(0, 0, "+", color="white", markersize=9)
    axes.set(xlabel="α", ylabel="β", aspect="equal")
    figure.colorbar(shades, label="loss")
    return figure


def line(found: dict[str, Any], title: str) -> Figure:
    """The loss along one direction."""
    figure, axes = _figure(title)
    axes.plot(found["x"], found["loss"][0], color="C0")
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="α", ylabel="loss", ylim=(0, None))
    return figure


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str, y: str) -> Figure:
    """Named curves over epochs or steps; many of them (layers) are shaded from the first to the last."""
    import matplotlib

    figure, axes = _figure(title, width=6.4)
    shades = matplotlib.colormaps["viridis"]
    for index, (name, (places, values)) in enumerate(series.items()):
        color = f"C{index}" if len(series) <= 4 else shades(index / (len(series) - 1))
        axes.plot(places, values, label=name, color=color, linewidth=1.0)
    axes.set(xlabel=x, ylabel=y, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(series) > 1:
        axes.legend(
            fontsize=6.5 if len(series) > 4 else 9, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=-(-len(series) // 28)
        )
    return figure


def _figure(title: str, width: float = 5.2, **axes: Any) -> tuple[Figure, Any]:
    """A figure with one set of axes; without pyplot, so that nothing stays open."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(width, 4.0), layout="constrained")
        return figure, figure.add_subplot(title=title, **axes)
