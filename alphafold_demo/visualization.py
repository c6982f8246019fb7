"""From a predicted structure to what people look at: scores, a page and pictures."""

import json
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from alphafold_demo import scoring
from alphafold_demo.figures import draw_figures
from alphafold_demo.page import write_page
from alphafold_demo.records import Antibody, Prediction, Report
from executor import Resources, TaskEnvironment

visualization = TaskEnvironment("visualization", resources=Resources(cpu=1, memory="1Gi"), cache="auto")

REFERENCE = Path(__file__).parent / "data" / "7cth-fv.pdb"
REFERENCE_NAME = "PDB 7CTH (cryo-EM, 3.5 Å), chains H and L"
CAVEAT = (
    "The reference is a public PDB entry and was probably in the predictor's training set: this is agreement,"
    " not a blind test."
)


@visualization.task
def visualize_results(antibody: Antibody, prediction: Prediction, title: str = "") -> Report:
    """Score a prediction, and draw it: report.html, scores.json and PNG files.

    It is compared with the reference that the demo ships where that is a structure of the same antibody.
    """
    structure = gemmi.read_structure(str(prediction.relaxed or prediction.predicted))
    structure.remove_hydrogens()
    residues = describe_residues(antibody, prediction.plddt.tolist(), structure[0])
    reference, comparison = compare(antibody, structure[0], residues)
    scores = summarize(antibody, prediction, residues, comparison, title)
    turn = upright(antibody, calphas(structure[0]))
    for shown in (structure, reference):
        if shown is not None:
            shown[0].transform_pos_and_adp(turn)
    known, known_text = None, None
    if reference is not None:
        known, known_text = calphas(reference[0]), reference.make_minimal_pdb()
    images = draw_figures(scores, residues, calphas(structure[0]), known)
    page = write_page(Path("report.html"), scores, residues, structure.make_minimal_pdb(), known_text)
    table = Path("scores.json")
    table.write_text(json.dumps(scores | {"residues": residues}, indent=1) + "\n")
    return Report(scores, page, table, images)


def describe_residues(antibody: Antibody, plddt: list[float], model: gemmi.Model) -> list[dict[str, Any]]:
    """One entry for each residue, heavy chain before light: what it is, its confidence and its backbone angles."""
    cdr_of = {at: name for name, (first, past) in antibody.cdrs().items() for at in range(first, past)}
    described: list[dict[str, Any]] = []
    for chain in antibody.chains:
        built = list(model[chain.letter])
        for at, (letter, imgt) in enumerate(zip(chain.sequence, chain.imgt, strict=True)):
            before, after = built[at - 1] if at else None, built[at + 1] if at + 1 < len(built) else None
            phi, psi = gemmi.calculate_phi_psi(before, built[at], after)
            described.append(
                {
                    "chain": chain.letter,
                    "number": at + 1,
                    "imgt": imgt,
                    "residue": letter,
                    "cdr": cdr_of.get(len(described), ""),
                    "plddt": plddt[len(described)],
                    "lddt": None,
                    "reference": None,
                    "phi": _degrees(phi),
                    "psi": _degrees(psi),
                }
            )
    return described


def compare(
    antibody: Antibody, model: gemmi.Model, residues: list[dict[str, Any]]
) -> tuple[gemmi.Structure, dict[str, Any]] | tuple[None, None]:
    """The reference laid on the model, and how well they agree; (None, None) where it is of another antibody.

    Fills in, for the residues that the reference has, which of its residues they are and their lDDT.
    """
    structure = gemmi.read_structure(str(REFERENCE))
    ours: list[int] = []
    theirs: list[int] = []
    for chain in antibody.chains:
        built = gemmi.one_letter_code([residue.name for residue in structure[0][chain.letter]])
        found = scoring.overlap(chain.sequence, built)
        if found is None:
            return None, None
        start, past = (0, 0) if chain.letter == "H" else (len(antibody.heavy.sequence), len(structure[0]["H"]))
        ours += range(start + found[0], start + found[0] + found[2])
        theirs += range(past + found[1], past + found[1] + found[2])
    predicted, known = calphas(model)[ours], calphas(structure[0])[theirs]
    rotation, shift = scoring.superpose(known, predicted)
    structure[0].transform_pos_and_adp(gemmi.Transform(gemmi.Mat33(rotation.T.tolist()), gemmi.Vec3(*shift)))
    laid = known @ rotation + shift
    lddt = scoring.lddt(predicted, known)
    names = [f"{chain.name}{residue.seqid}" for chain in structure[0] for residue in chain]
    for at, other, value in zip(ours, theirs, lddt, strict=True):
        residues[at] |= {"lddt": round(float(value), 2), "reference": names[other]}
    place = {at: index for index, at in enumerate(ours)}
    cdrs = {name: [place[at] for at in range(*ends) if at in place] for name, ends in antibody.cdrs().items()}
    return structure, {
        "name": REFERENCE_NAME,
        "caveat": CAVEAT,
        "residues": len(ours),
        "ca_rmsd": round(scoring.rmsd(laid, predicted), 3),
        "lddt_ca": round(float(lddt.mean()), 2),
        "cdr_ca_rmsd": {name: round(scoring.rmsd(laid[at], predicted[at]), 2) for name, at in cdrs.items() if at},
    }


def summarize(
    antibody: Antibody,
    prediction: Prediction,
    residues: list[dict[str, Any]],
    comparison: dict[str, Any] | None,
    title: str,
) -> dict[str, Any]:
    """The numbers of the report, as plain data."""
    plddt = np.array([residue["plddt"] for residue in residues])
    return {
        "title": title.strip() or f"{antibody.heavy.record} and {antibody.light.record}",
        "predictor": prediction.predictor,
        "is_alphafold": prediction.is_alphafold,
        "statement": prediction.statement,
        "device": prediction.device,
        "weights_sha256": prediction.weights_sha256,
        "structure": "relaxed" if prediction.relaxed else "as predicted",
        "mean_plddt": round(float(plddt.mean()), 2),
        "cdr_plddt": {name: round(float(plddt[slice(*ends)].mean()), 2) for name, ends in antibody.cdrs().items()},
        "reference": comparison,
        "relaxation": prediction.relaxation,
        "chains": [
            {
                "chain": chain.letter,
                "record": chain.record,
                "kind": chain.kind,
                "residues": len(chain.sequence),
                "start": chain.start,
                "trimmed": chain.trimmed,
                "germline": chain.germline,
            }
            for chain in antibody.chains
        ],
    }


def calphas(model: gemmi.Model) -> np.ndarray:
    """The Cα coordinates of every residue of a model, chain after chain, in ångström."""
    return np.array([residue["CA"][0].pos.tolist() for chain in model for residue in chain])


def upright(antibody: Antibody, points: np.ndarray) -> gemmi.Transform:
    """The rotation about the middle that shows an antibody as it is drawn: CDRs up, heavy chain on the left."""
    centre = points.mean(axis=0)
    loops = [at for ends in antibody.cdrs().values() for at in range(*ends)]
    split = len(antibody.heavy.sequence)
    up = points[loops].mean(axis=0) - centre
    up /= np.linalg.norm(up)
    right = points[split:].mean(axis=0) - points[:split].mean(axis=0)
    right -= (right @ up) * up
    right /= np.linalg.norm(right)
    rotation = np.array([right, up, np.cross(right, up)])
    return gemmi.Transform(gemmi.Mat33(rotation.tolist()), gemmi.Vec3(*(-rotation @ centre)))


def _degrees(angle: float) -> float | None:
    """An angle in degrees; None for one that a chain's end does not have."""
    return None if np.isnan(angle) else round(float(np.degrees(angle)), 1)
