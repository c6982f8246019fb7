"""The main job, end to end, on both runtimes: what a biologist gets, checked against the known structure."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import RunLocal
from tests.demo.browser import opened
from tests.demo.sequences import HEAVY, LIGHT, UBIQUITIN
from tests.harness import ROOT, WITHOUT_NETWORK

# A run predicts and relaxes a structure, which takes some 20 seconds; the first one also builds four environments.
pytestmark = pytest.mark.slow

KNOWN = ROOT / "alphafold_demo" / "data" / "7cth-fv.pdb"
NOT_ALPHAFOLD = "not AlphaFold"


def calphas(structure: Path) -> dict[str, np.ndarray]:
    """Chain → its Cα coordinates; written anew, so that a mistake of the demo's is not made twice."""
    found: dict[str, list[list[float]]] = {}
    for line in structure.read_text().splitlines():
        if line.startswith("ATOM") and line[12:16].strip() == "CA":
            found.setdefault(line[21], []).append([float(line[at : at + 8]) for at in (30, 38, 46)])
    return {chain: np.array(places) for chain, places in found.items()}


def agreement(structure: Path) -> tuple[float, float]:
    """Cα RMSD (Å) and lDDT-Cα of a predicted structure of EDE1-C10."""
    predicted, known = calphas(structure), calphas(KNOWN)
    # The reference lacks the last residue of the heavy domain and the first two of the light, and has one more there.
    ours = np.concatenate([predicted["H"][:127], predicted["L"][2:]])
    theirs = np.concatenate([known["H"], known["L"][:108]])
    x, y = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    left, sizes, right = np.linalg.svd(x.T @ y)
    sizes[-1] *= np.sign(np.linalg.det(left @ right))
    rmsd = np.sqrt(max(0.0, (x**2).sum() + (y**2).sum() - 2 * sizes.sum()) / len(x))
    far = [np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1)) for points in (x, y)]
    near = (far[1] < 15) & ~np.eye(len(x), dtype=bool)
    kept = sum((near & (np.abs(far[0] - far[1]) < limit)).sum(axis=1) for limit in (0.5, 1, 2, 4)) / 4
    return float(rmsd), float(100 * (kept / near.sum(axis=1)).mean())


def run(run_local: RunLocal, runtime: str, *arguments: str | Path) -> dict[str, Any]:
    """The document of a run of the demo that succeeds, whatever the cache holds."""
    words = ("--runtime", runtime, "--no-cache", "--json", *arguments)
    done = run_local("alphafold_workflow", *words, cwd=ROOT, timeout_s=1800)
    assert done.code == 0, done.stderr
    return done.document


def test_the_shipped_antibody_is_predicted_as_it_is_known(
    run_local: RunLocal, runtime: str, chromium: Path, tmp_path: Path
) -> None:
    """Four tasks in four environments; a structure within 1.1 Å; every output says what it is, and what it is not."""
    document = run(run_local, runtime)
    result, outputs = document["result"], Path(document["outputs"])
    assert sorted(call["environment"] for call in document["calls"]) == [
        "alphafold",
        "orchestrator",
        "preprocessing",
        "visualization",
    ]
    assert {call["status"] for call in document["calls"]} == {"succeeded"}
    for name in ("prediction.pdb", "relaxed.pdb"):
        rmsd, lddt = agreement(outputs / name)
        assert rmsd <= 1.1, name
        assert lddt >= 88, name
        assert NOT_ALPHAFOLD in (outputs / name).read_text().replace("\nREMARK   1 ", " ")
    assert (result["ca_rmsd"], result["lddt_ca"]) == pytest.approx(agreement(outputs / "relaxed.pdb"), abs=0.05)
    assert result["is_alphafold"] is False
    scores = json.loads((outputs / "scores.json").read_text())
    assert NOT_ALPHAFOLD in scores["statement"]
    assert scores["relaxation"]["clashes_after"] == 0
    assert 1.2 < scores["relaxation"]["shortest_peptide_bond_after"] < 1.4
    assert [Path(image).read_bytes()[:4] for image in result["images"]] == [b"\x89PNG"] * 4
    with opened(chromium, Path(result["report"]), tmp_path / "profile") as page:
        assert page.title() == "rendered: 7CTH_H and 7CTH_L, 238 residues"
        assert page.complaints == []
        assert page.requests == [Path(result["report"]).as_uri()]
        assert NOT_ALPHAFOLD in page.run("document.body.innerText")


def test_a_second_run_computes_nothing(run_local: RunLocal, runtime: str) -> None:
    """Its only call is a hit, with the same numbers, and with files of its own that have the same content."""
    first = run(run_local, runtime, "--no-relax", "--title", "Twice")
    second = run_local(
        "alphafold_workflow", "--runtime", runtime, "--json", "--no-relax", "--title", "Twice", cwd=ROOT
    ).document
    assert [(call["status"], call["origin"]["run"]) for call in second["calls"]] == [("cached", first["run"])]
    assert second["result"]["mean_plddt"] == first["result"]["mean_plddt"]
    found = [{path.name: path.read_bytes() for path in Path(each["outputs"]).iterdir()} for each in (first, second)]
    assert found[0] == found[1] != {}


def test_two_runs_come_to_the_same(run_local: RunLocal, engine: object) -> None:
    """Every byte of every output, computed in containers and again as processes: what differs later has another cause."""
    runs = [run(run_local, runtime) for runtime in ("docker", "process")]
    found = [{path.name: path.read_bytes() for path in Path(each["outputs"]).iterdir()} for each in runs]
    assert {"relaxed.pdb", "scores.json", "report.html", "structure.png"} < found[0].keys()
    assert found[0] == found[1]


@pytest.mark.skipif(not WITHOUT_NETWORK, reason="no network namespaces here")
def test_it_runs_again_without_any_network(run_local: RunLocal, runtime: str) -> None:
    """After one run that fetched what it needs: offline, in a network namespace that has no interface."""
    run(run_local, runtime, "--no-relax")
    command = [*WITHOUT_NETWORK, str(Path(sys.executable).with_name("run-local")), "--offline", "alphafold_workflow"]
    done = subprocess.run(
        [*command, "--runtime", runtime, "--no-relax", "--no-cache", "--json"],
        cwd=ROOT,
        env={**run_local.variables, "RUN_LOCAL_HOME": str(run_local.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "succeeded"


def test_an_antibody_of_the_users_own_has_no_reference(run_local: RunLocal, tmp_path: Path) -> None:
    """Its file is passed by name; nothing is compared with what it is not."""
    own = tmp_path / "ede1-c10.fasta"  # the name of the shipped one: what counts is the sequence
    own.write_text(f">trastuzumab_heavy\n{HEAVY}\n>trastuzumab_light\n{LIGHT}\n")
    document = run(run_local, "process", "--sequence-data", own, "--no-relax", "--title", "Trastuzumab <own>")
    result = document["result"]
    assert result["reference"] is None
    assert result["ca_rmsd"] is None
    assert result["relaxed"] is None
    assert result["mean_plddt"] > 80
    assert "<h1>Trastuzumab &lt;own&gt;</h1>" in Path(result["report"]).read_text()


def test_what_is_no_antibody_is_refused_before_anything_is_predicted(run_local: RunLocal, tmp_path: Path) -> None:
    """The message says which record is meant and why; the prediction is never called."""
    ubiquitin = tmp_path / "ubiquitin.fasta"
    ubiquitin.write_text(f">ubiquitin\n{UBIQUITIN}\n")
    done = run_local(
        *("alphafold_workflow", "--runtime", "process", "--json", "--sequence-data", ubiquitin),
        cwd=ROOT,
        timeout_s=1800,
    )
    assert done.code == 1
    assert "record `ubiquitin` is not an antibody chain" in done.stderr
    assert [call["environment"] for call in done.document["calls"]] == ["orchestrator", "preprocessing"]
    assert {call["status"] for call in done.document["calls"]} == {"failed"}
