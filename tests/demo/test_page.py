"""The report's page, opened in a browser: it draws the structure, complains about nothing and asks no host."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphafold_demo.page import write_page
from tests.demo.browser import opened
from tests.harness import ROOT

KNOWN = ROOT / "alphafold_demo" / "data" / "7cth-fv.pdb"

WritePage = Callable[..., Path]


def residues_of(structure: str) -> list[dict[str, Any]]:
    """The residues of a PDB text in the form of scores.json, with made-up scores."""
    found = re.findall(r"^ATOM .{8}CA  \w{3} (\w) *(\d+)", structure, re.MULTILINE)
    return [
        {
            "chain": chain,
            "number": int(number),
            "imgt": number,
            "residue": "G" if int(number) % 9 == 0 else "A",
            "cdr": f"{chain}3" if 95 < int(number) < 105 else "",
            "plddt": 40.0 + int(number) % 60,
            "lddt": 80.0,
            "reference": f"{chain}{number}",
            "phi": -60.0,
            "psi": None if number == "1" else 140.0,
        }
        for chain, number in found
    ]


@pytest.fixture
def page(tmp_path: Path) -> WritePage:
    """Writes a report of the reference as if it had been predicted."""

    def write(title: str = "EDE1-C10", structure: str = KNOWN.read_text(), *, known: bool = True) -> Path:
        compared = {
            "name": "PDB 7CTH",
            "caveat": "Agreement, not a blind test.",
            "residues": 236,
            "ca_rmsd": 0.0,
            "lddt_ca": 100.0,
            "cdr_ca_rmsd": {"H3": 0.0},
        }
        scores = {
            "title": title,
            "predictor": "FlashABB 0.0.5",
            "statement": "FlashABB; not AlphaFold",
            "device": "cpu",
            "weights_sha256": "0" * 64,
            "structure": "as predicted",
            "mean_plddt": 69.5,
            "cdr_plddt": {"H3": 70.0},
            "reference": compared if known else None,
            "relaxation": {},
            "chains": [],
        }
        residues = residues_of(KNOWN.read_text())
        return write_page(tmp_path / "report.html", scores, residues, structure, structure if known else None)

    return write


def test_the_structure_is_drawn_without_complaint_or_request(page: WritePage, chromium: Path, tmp_path: Path) -> None:
    """The title is set after pixels of the structure were counted; the console stays empty; no host is asked."""
    path = page()
    with opened(chromium, path, tmp_path / "profile") as visit:
        assert visit.title() == "rendered: EDE1-C10, 236 residues"
        assert visit.complaints == []
        assert visit.requests == [path.as_uri()]
        assert "not AlphaFold" in visit.run("document.body.innerText")


def test_every_control_works_without_complaint(page: WritePage, chromium: Path, tmp_path: Path) -> None:
    """Each button can be pressed, and pointing at each drawing tells something."""
    with opened(chromium, page(), tmp_path / "profile") as visit:
        visit.title()
        visit.run("document.querySelectorAll('button').forEach((button) => { button.click(); button.click(); })")
        point = """(drawing, across) => {
          const box = document.querySelector(drawing).getBoundingClientRect();
          const at = { clientX: box.left + across * box.width, clientY: box.top + across * box.height };
          document.querySelector(drawing).dispatchEvent(new PointerEvent("pointermove", at));
        }"""
        visit.run(f"({point})('.strip svg', .5)")
        visit.run(f"({point})('#distances', .5)")
        assert "pLDDT" in visit.run("document.getElementById('strip-readout').textContent")
        assert "reference" in visit.run("document.getElementById('distance-readout').textContent")
        assert visit.complaints == []


def test_names_are_text_and_not_markup(page: WritePage, chromium: Path, tmp_path: Path) -> None:
    """A record's name is the user's; whatever it holds is shown, and nothing of it runs."""
    hostile = "</script><script>document.title='owned'</script><img src=http://a.example/x onerror=owned()>{{data}}"
    path = page(title=hostile)
    with opened(chromium, path, tmp_path / "profile") as visit:
        assert visit.title() == f"rendered: {hostile}, 236 residues"
        assert visit.run("document.querySelector('h1').textContent") == hostile
        assert visit.requests == [path.as_uri()]


def test_without_a_reference_the_page_says_so(page: WritePage, chromium: Path, tmp_path: Path) -> None:
    """An antibody of the user's own has nothing to be compared with; no number is made up."""
    with opened(chromium, page(known=False), tmp_path / "profile", width=390) as visit:
        assert visit.title().startswith("rendered: ")
        text = visit.run("document.body.innerText")
        assert "There is no reference structure for this antibody." in text
        assert "RMSD" not in text
        assert visit.run("document.getElementById('show-reference').disabled")
        assert visit.run("document.documentElement.scrollWidth") <= 390, "a phone would have to scroll sideways"
        assert visit.complaints == []


def test_a_structure_that_cannot_be_drawn_is_not_called_rendered(
    page: WritePage, chromium: Path, tmp_path: Path
) -> None:
    """The title that says `rendered` is a promise."""
    with opened(chromium, page(structure="END\n"), tmp_path / "profile") as visit:
        assert visit.title().startswith("not rendered: ")


def test_requests_and_complaints_would_be_seen(chromium: Path, tmp_path: Path) -> None:
    """The proof that the checks above can fail."""
    path = tmp_path / "careless.html"
    path.write_text(
        "<title>x</title><img src='http://a.example/x.png'>"
        "<script>console.error('boom'); setTimeout(() => { document.title = 'rendered: x'; oops(); })</script>"
    )
    with opened(chromium, path, tmp_path / "profile") as visit:
        visit.title()
        assert "http://a.example/x.png" in visit.requests
        complaints = " ".join(visit.complaints)
        assert "boom" in complaints
        assert "oops" in complaints
