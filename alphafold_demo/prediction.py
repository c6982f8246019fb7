"""From an antibody's sequence to its structure, with FlashABB; it runs on the GPU where one is visible."""

import hashlib
import time
from pathlib import Path

import flash_abb
import numpy as np
import torch
from flash_abb.model.openfold.np import residue_constants

from alphafold_demo.records import Antibody, Prediction
from alphafold_demo.relaxation import relax_structure
from alphafold_demo.structure_file import Atom, write_pdb
from executor import Resources, TaskEnvironment

CORES = 2

alphafold = TaskEnvironment("alphafold", resources=Resources(cpu=(1, CORES), memory=("2Gi", "8Gi")), cache="auto")

PREDICTOR = "FlashABB 0.0.5"
STATEMENT = "FlashABB, whose structure module derives from AlphaFold 2's; not AlphaFold"
WEIGHTS = "flabb_weights.pt"
WEIGHTS_SHA256 = "1c266694c15c9890707db418bb8e424bf7de45f562a74142d4942f25c1e39e6a"


@alphafold.task
def run_alphafold(antibody: Antibody, relax: bool = True) -> Prediction:
    """Predict the structure of an antibody's variable fragment, and relax it.

    Writes prediction.pdb (pLDDT in the B-factors) and, with `relax`, relaxed.pdb.
    """
    torch.set_num_threads(CORES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, digest = load_network(device)
    started = time.perf_counter()
    atoms, plddt = predict(network, antibody)
    predicted = write_pdb(Path("prediction.pdb"), atoms, remarks(device))
    seconds = time.perf_counter() - started
    print(f"{PREDICTOR} on {device}: mean pLDDT {sum(plddt) / len(plddt):.1f}, {seconds:.2f} s")
    relaxed: Path | None = None
    relaxation: dict[str, float] = {}
    if relax:
        started = time.perf_counter()
        relaxed, relaxation = relax_structure(predicted, plddt, remarks(device))
        print(f"relaxed in {time.perf_counter() - started:.2f} s")
    return Prediction(
        predictor=PREDICTOR,
        is_alphafold=False,
        statement=STATEMENT,
        device=_name_of(device),
        weights_sha256=digest,
        plddt=np.array(plddt),
        predicted=predicted,
        relaxed=relaxed,
        relaxation=relaxation,
    )


def load_network(device: str) -> tuple[flash_abb.pretrained, str]:
    """FlashABB with its own weights, and their SHA-256.

    Its own loader would unpickle whatever the file holds; here the file must be the known one, and hold tensors only.
    """
    path = Path(flash_abb.__file__).parent / "weights" / WEIGHTS
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"`{WEIGHTS}` of flash-abb is not the file of {PREDICTOR}: its SHA-256 is {digest}")
    network = flash_abb.pretrained(random_init=True, device=device)
    network.flabb.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return network, digest


def predict(network: flash_abb.pretrained, antibody: Antibody) -> tuple[list[Atom], list[float]]:
    """The heavy atoms of both chains, B-factors filled with pLDDT, and the pLDDT of each residue (0 to 100)."""
    with torch.inference_mode():
        result = network([f"{antibody.heavy.sequence}|{antibody.light.sequence}"])
    plddt = confidence(result.output["plddt"][0])
    coordinates = result.coords[0].cpu().numpy()
    atoms: list[Atom] = []
    at = 0
    for chain in antibody.chains:
        for number, letter in enumerate(chain.sequence, 1):
            residue = residue_constants.restype_1to3[letter]
            names = residue_constants.restype_name_to_atom14_names[residue]
            atoms += [
                Atom(name, residue, chain.letter, number, tuple(map(float, place)), plddt[at])
                for name, place in zip(names, coordinates[at], strict=True)
                if name
            ]
            at += 1
        atoms.append(_terminal_oxygen(atoms, plddt[at - 1]))
    return atoms, plddt


def confidence(logits: torch.Tensor) -> list[float]:
    """The pLDDT of each residue, 0 to 100: the mean of the predicted distribution over bins of lDDT-Cα."""
    bins = logits.shape[-1]
    centres = (torch.arange(bins, device=logits.device) + 0.5) * (100 / bins)
    return [round(value, 2) for value in (logits.softmax(-1) @ centres).tolist()]


def _terminal_oxygen(atoms: list[Atom], plddt: float) -> Atom:
    """The second oxygen of a chain's end, which the network does not predict: the first one, mirrored at CA-C."""
    last = atoms[-1]
    place = {a.name: np.array(a.place) for a in atoms if (a.chain, a.number) == (last.chain, last.number)}
    axis = (place["C"] - place["CA"]) / np.linalg.norm(place["C"] - place["CA"])
    bond = place["O"] - place["C"]
    mirrored = place["C"] + 2 * (bond @ axis) * axis - bond
    return Atom("OXT", last.residue, last.chain, last.number, tuple(map(float, mirrored)), plddt)


def remarks(device: str) -> list[str]:
    """What every structure file says about itself."""
    return [f"Predicted on {device} with {PREDICTOR}", STATEMENT, "B-factors are pLDDT, 0 to 100"]


def _name_of(device: str) -> str:
    return f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else device
