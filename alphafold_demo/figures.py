"""The pictures of the report as PNG files, each with a caption that says which predictor ran."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from alphafold_demo import scoring

BANDS = ((90, "#0053d6", "very high"), (70, "#65cbf3", "high"), (50, "#ffdb13", "low"), (0, "#ff7d45", "very low"))
_INK, _GREY = "#1d2733", "#9aa5b1"
_DOTS = 150  # to the inch


def draw_figures(
    scores: dict[str, Any], residues: list[dict[str, Any]], points: np.ndarray, reference: "np.ndarray | None"
) -> list[Path]:
    """Draw the structure, its confidence, its distances and its backbone angles; answers with the files."""
    return [
        _structure(scores, residues, points, reference),
        _confidence(scores, residues),
        _distances(scores, residues, points),
        _ramachandran(scores, residues),
    ]


def band(plddt: float) -> str:
    """AlphaFold's colour for a pLDDT."""
    return next(colour for least, colour, _ in BANDS if plddt >= least)


def _figure(scores: dict[str, Any], width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    heading = f"{textwrap.shorten(scores['title'], 60, placeholder='…')}: {title}"
    figure.suptitle(heading, color=_INK, fontsize=11, parse_math=False)  # a `$` in a name is no formula
    caption = f"{scores['predictor']} on {scores['device']}. {scores['statement']}."
    figure.supxlabel(caption, color="#5b6672", fontsize=7)
    return figure


def _save(figure: Figure, name: str) -> Path:
    path = Path(name)
    figure.savefig(path, dpi=_DOTS)
    return path


def _structure(
    scores: dict[str, Any], residues: list[dict[str, Any]], points: np.ndarray, reference: "np.ndarray | None"
) -> Path:
    """Cα traces from the front and from the side, what is nearer drawn on top."""
    figure = _figure(scores, 9, 5, "Cα trace, coloured by pLDDT" + (", reference in grey" * (reference is not None)))
    for axes, (across, depth), label in zip(figure.subplots(1, 2), ((0, 2), (2, 0)), ("front", "side"), strict=True):
        if reference is not None:
            _trace(axes, reference, (across, depth), [_GREY] * len(reference), 1.2)
        _trace(axes, points, (across, depth), [band(residue["plddt"]) for residue in residues], 3.0)
        axes.set_aspect("equal")
        axes.autoscale()
        axes.axis("off")
        axes.set_title(label, fontsize=9, color=_INK)
    return _save(figure, "structure.png")


def _trace(axes: Axes, points: np.ndarray, view: tuple[int, int], colours: list[str], width: float) -> None:
    across, depth = view
    pairs = np.stack([points[:-1], points[1:]], axis=1)
    joined = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1) < 4.5  # Å: not from the end of a chain to the next
    order = [at for at in np.argsort(pairs[:, :, depth].mean(axis=1)) if joined[at]]
    lines = LineCollection(
        [pairs[at][:, [across, 1]] for at in order],
        colors=[colours[at] for at in order],
        linewidths=width,
        capstyle="round",
    )
    axes.add_collection(lines)


def _confidence(scores: dict[str, Any], residues: list[dict[str, Any]]) -> Path:
    figure = _figure(scores, 9, 4.6, "confidence of each residue")
    for axes, letter, label in zip(figure.subplots(2, 1), "HL", ("heavy chain", "light chain"), strict=True):
        mine = [residue for residue in residues if residue["chain"] == letter]
        numbers = [residue["number"] for residue in mine]
        axes.bar(numbers, [r["plddt"] for r in mine], width=1.0, color=[band(r["plddt"]) for r in mine])
        known = [np.nan if residue["lddt"] is None else residue["lddt"] for residue in mine]
        if not np.all(np.isnan(known)):
            axes.plot(numbers, known, color="white", linewidth=2.6)
            axes.plot(numbers, known, color=_INK, linewidth=1.2, label="lDDT-Cα against the reference")
            axes.legend(fontsize=7, loc="lower left", framealpha=0.9)
        for name in sorted({residue["cdr"] for residue in mine} - {""}):
            inside = [residue["number"] for residue in mine if residue["cdr"] == name]
            axes.axvspan(min(inside) - 0.5, max(inside) + 0.5, color="#d5dce3", linewidth=0, zorder=0)
            axes.text(np.mean(inside), 103, name, ha="center", fontsize=7, color=_INK)
        axes.set(ylim=(0, 112), xlim=(0.5, len(mine) + 0.5), ylabel="pLDDT", title=label)
        axes.title.set_fontsize(9)
    return _save(figure, "confidence.png")


def _distances(scores: dict[str, Any], residues: list[dict[str, Any]], points: np.ndarray) -> Path:
    figure = _figure(scores, 5.6, 5, "Cα distances")
    axes = figure.subplots()
    shown = axes.imshow(scoring.distances(points), cmap="viridis_r", vmin=0, vmax=40)
    border = sum(residue["chain"] == "H" for residue in residues) - 0.5
    axes.axhline(border, color="white", linewidth=1)
    axes.axvline(border, color="white", linewidth=1)
    axes.set(xlabel="residue (heavy, then light chain)", ylabel="residue")
    figure.colorbar(shown, ax=axes, label="Å", shrink=0.8)
    return _save(figure, "distances.png")


def _ramachandran(scores: dict[str, Any], residues: list[dict[str, Any]]) -> Path:
    figure = _figure(scores, 5.2, 5, "backbone angles")
    axes = figure.subplots()
    for glycine, marker, label in ((False, "o", "other residues"), (True, "^", "glycine")):
        mine = [
            residue
            for residue in residues
            if residue["phi"] is not None and residue["psi"] is not None and (residue["residue"] == "G") == glycine
        ]
        axes.scatter(
            [residue["phi"] for residue in mine],
            [residue["psi"] for residue in mine],
            c=[band(residue["plddt"]) for residue in mine],
            marker=marker,
            s=22,
            edgecolors=_INK,
            linewidths=0.4,
            label=label,
        )
    axes.axhline(0, color=_GREY, linewidth=0.6)
    axes.axvline(0, color=_GREY, linewidth=0.6)
    ticks = range(-180, 181, 60)
    axes.set(xlim=(-180, 180), ylim=(-180, 180), xticks=ticks, yticks=ticks, xlabel="φ (°)", ylabel="ψ (°)")
    axes.set_aspect("equal")
    axes.legend(fontsize=7, loc="lower right")
    return _save(figure, "ramachandran.png")
