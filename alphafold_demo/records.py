"""What the steps hand to one another.

It is plain data, so every environment can open it, but for one array: the workflow's own environment holds no NumPy,
keeps it as an opaque handle, and hands it on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Chain:
    """The variable domain of one chain.

    letter:   "H" or "L", the chain's name in every structure file
    record:   the name of its record in the FASTA file
    kind:     "heavy", "kappa" or "lambda"
    sequence: one letter for each residue of the domain; what lies outside it is trimmed off
    start:    position of the first residue in the record, counted from 1
    trimmed:  how many residues of the record lie outside the domain
    imgt:     the IMGT number of each residue, such as "111A"
    cdrs:     name → (first, past the last) index into `sequence`, such as "H3": (98, 119)
    germline: the nearest V and J genes, for people to read
    """

    letter: str
    record: str
    kind: str
    sequence: str
    start: int
    trimmed: int
    imgt: list[str]
    cdrs: dict[str, tuple[int, int]]
    germline: str


@dataclass(frozen=True)
class Antibody:
    """A paired variable fragment (Fv): what there is to predict."""

    heavy: Chain
    light: Chain

    @property
    def chains(self) -> tuple[Chain, Chain]:
        """Both chains in the order in which every list of residues has them: heavy, then light."""
        return self.heavy, self.light

    def cdrs(self) -> dict[str, tuple[int, int]]:
        """Name → (first, past the last) index into the residues of both chains, heavy before light."""
        past = len(self.heavy.sequence)
        return self.heavy.cdrs | {name: (first + past, end + past) for name, (first, end) in self.light.cdrs.items()}


@dataclass(frozen=True)
class Prediction:
    """A predicted structure and where it comes from.

    predictor:  name and version of the program that predicted it
    statement:  one sentence for people on what that program is, and what it is not
    device:     where the network ran, such as "cpu"
    plddt:      confidence of each residue, 0 to 100, heavy chain before light, shape (residues,)
    predicted:  PDB file as the network left it, pLDDT in the B-factors
    relaxed:    the same after relaxation, with hydrogens; None where none was asked for
    relaxation: what relaxation did to the geometry, in the words of `alphafold_demo.relaxation`; empty without
    """

    predictor: str
    is_alphafold: bool
    statement: str
    device: str
    weights_sha256: str
    plddt: "np.ndarray"
    predicted: Path
    relaxed: Path | None
    relaxation: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What there is to look at.

    scores: the numbers of the report in plain data, without the lists of residues
    page:   one HTML file that needs nothing else
    table:  every number, as JSON
    images: PNG files
    """

    scores: dict[str, Any]
    page: Path
    table: Path
    images: list[Path]
