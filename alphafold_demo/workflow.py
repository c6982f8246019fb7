"""The workflow: what a user writes, and what `run-local alphafold_workflow` runs.

Each task runs in an environment of its own. This one's environment, `orchestrator`, holds Python and nothing else,
although the modules imported here import NumPy, PyTorch, OpenMM and Matplotlib at their tops.
"""

from pathlib import Path
from typing import Any

from alphafold_demo.prediction import alphafold, run_alphafold
from alphafold_demo.preprocessing import preprocess_data, preprocessing
from alphafold_demo.visualization import visualization, visualize_results
from executor import Resources, TaskEnvironment

EDE1_C10 = Path(__file__).parent / "data" / "ede1-c10.fasta"

orchestrator = TaskEnvironment(
    "orchestrator",
    depends_on=[preprocessing, alphafold, visualization],
    resources=Resources(cpu=1, memory="256Mi"),
    cache="auto",
)


@orchestrator.task
def alphafold_workflow(sequence_data: Path = EDE1_C10, relax: bool = True, title: str = "") -> dict[str, Any]:
    """Predict the structure of an antibody from its sequence, and report on it.

    sequence_data: FASTA file with one heavy and one light chain
    relax:         whether the prediction is relaxed in a force field
    title:         heading of the report; empty: the names of the chains' records
    """
    antibody = preprocess_data(sequence_data)
    prediction = run_alphafold(antibody, relax)
    report = visualize_results(antibody, prediction, title)
    scores = report.scores
    reference = scores["reference"] or {}
    return {
        "predictor": scores["predictor"],
        "is_alphafold": scores["is_alphafold"],
        "statement": scores["statement"],
        "device": scores["device"],
        "mean_plddt": scores["mean_plddt"],
        "cdr_h3_plddt": scores["cdr_plddt"].get("H3"),
        "reference": reference.get("name"),
        "ca_rmsd": reference.get("ca_rmsd"),
        "lddt_ca": reference.get("lddt_ca"),
        "report": report.page,
        "scores": report.table,
        "prediction": prediction.predicted,
        "relaxed": prediction.relaxed,
        "images": report.images,
    }
