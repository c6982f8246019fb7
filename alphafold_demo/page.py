"""One HTML file with everything in it: the structures, the viewer, the drawings; it asks no host for anything."""

import html
import json
import re
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_WEB = _HERE / "web"
_VIEWER = _HERE / "data" / "3dmol" / "3Dmol-min.js"


def write_page(
    path: Path, scores: dict[str, Any], residues: list[dict[str, Any]], structure: str, reference: str | None
) -> Path:
    """Write the report, and answer with its path.

    scores, residues: as in scores.json
    structure:        the predicted structure, a PDB file's text
    reference:        the same for the known structure laid on it, where there is one
    """
    data = {"scores": scores, "residues": residues, "structure": structure, "reference": reference}
    parts = {
        "title": html.escape(scores["title"]),
        "style": (_WEB / "report.css").read_text(),
        "viewer": _VIEWER.read_text(),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # so that no text ends the element
        "script": (_WEB / "report.js").read_text(),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], (_WEB / "report.html").read_text())
    path.write_text(page, encoding="utf-8")
    return path
