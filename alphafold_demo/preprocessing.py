"""From a FASTA file to the antibody in it: checked, numbered, trimmed to its variable domains, paired."""

import re
from pathlib import Path
from typing import NoReturn

import anarcism

from alphafold_demo.records import Antibody, Chain
from executor import Resources, TaskEnvironment

preprocessing = TaskEnvironment("preprocessing", resources=Resources(cpu=1, memory="512Mi"), cache="auto")

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
LARGEST_BYTES = 2**20
LONGEST_CHAIN = 2000

_KINDS = {"H": "heavy", "K": "kappa", "L": "lambda"}
_LAST_OF_FRAMEWORK_1, _FIRST_OF_FRAMEWORK_4 = 26, 118  # IMGT numbers


class UnusableInput(ValueError):
    """The sequence file cannot be predicted from; the message says why, and what to do."""


@preprocessing.task
def preprocess_data(sequence_data: Path) -> Antibody:
    """Find the heavy and the light variable domain in a FASTA file.

    Raises `UnusableInput` for a file that is not FASTA, letters that are not the 20 amino acids, and anything but one
    heavy and one light chain of an antibody.
    """
    records = parse_fasta(read_text(sequence_data), sequence_data.name)
    chains = [chain for name, sequence in records.items() for chain in find_domains(name, sequence)]
    antibody = pair(chains)
    for chain in antibody.chains:
        print(f"{chain.record}: {chain.kind}, {len(chain.sequence)} residues from {chain.start} on; {chain.germline}")
    return antibody


def read_text(path: Path) -> str:
    """The file's text; refuses what is too large for an antibody or is no text at all."""
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        _refuse(f"`{path.name}` has {size / 2**20:.1f} MiB", "give a FASTA file with the two chains of one antibody")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        _refuse(f"`{path.name}` is not a text file", "if it is compressed, unpack it first")


def parse_fasta(text: str, file: str) -> dict[str, str]:
    """Name → sequence in capitals, of every record; `file` is for the messages."""
    if not text.strip():
        _refuse(f"`{file}` is empty", "give a FASTA file with a heavy and a light chain")
    if not text.lstrip().startswith(">"):
        _refuse(
            f"`{file}` is not FASTA: its first line does not begin with `>`",
            "put a line like `>heavy` before each sequence",
        )
    records: dict[str, str] = {}
    for part in text.lstrip()[1:].split("\n>"):
        title, _, body = part.partition("\n")
        name = title.split()[0] if title.split() else ""
        if not name:
            _refuse(f"a record of `{file}` has no name", "write a name after each `>`, such as `>heavy`")
        if name in records:
            _refuse(f"`{file}` holds two records named `{name}`", "give each chain a name of its own")
        records[name] = re.sub(r"\s", "", body).upper()
        check_letters(name, records[name])
    return records


def check_letters(name: str, sequence: str) -> None:
    """Refuse a chain that is empty, absurdly long, or not written in the 20 amino acids."""
    if not sequence:
        _refuse(f"record `{name}` has no sequence", "put the chain's amino acids on the lines below its name")
    if len(sequence) > LONGEST_CHAIN:
        _refuse(f"record `{name}` has {len(sequence)} residues", "an antibody chain has fewer than 700; give one chain")
    if len(sequence) > 20 and set(sequence) <= set("ACGTUN"):
        _refuse(f"record `{name}` looks like DNA or RNA", "translate it, and give the protein's sequence")
    wrong = [(place, letter) for place, letter in enumerate(sequence, 1) if letter not in AMINO_ACIDS]
    if wrong:
        place, letter = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        _refuse(
            f"record `{name}` has `{letter}` at position {place}{more}, which is none of the 20 amino acids",
            f"write the residue that is meant, one of {AMINO_ACIDS}, and leave out gaps and stop signs",
        )


def find_domains(name: str, sequence: str) -> list[Chain]:
    """The variable domains of one record, numbered; a record without any is refused by name."""
    result = anarcism.number_sequence(sequence, id=name, assign_germline=True)
    if not result.domains:
        _refuse(
            f"record `{name}` is not an antibody chain: no variable domain was found in its {len(sequence)} residues",
            "this demo predicts paired antibodies only; leave out antigens and other proteins, and give a heavy and"
            " a light chain",
        )
    return [_chain(name, sequence, domain) for domain in result.domains]


def _chain(name: str, sequence: str, domain: anarcism.DomainResult) -> Chain:
    if domain.receptor_type != "IG":
        _refuse(
            f"record `{name}` is a chain of a T-cell receptor (type {domain.chain_type})",
            "this demo's predictor knows antibodies only; give a heavy and a light chain of an antibody",
        )
    numbering = domain.numbering
    if numbering[0].position > _LAST_OF_FRAMEWORK_1 or numbering[-1].position < _FIRST_OF_FRAMEWORK_4:
        _refuse(
            f"record `{name}` holds a part of a variable domain only: IMGT {numbering[0].position} to"
            f" {numbering[-1].position}",
            "give the whole domain, from framework 1 to framework 4",
        )
    letter = "H" if domain.chain_type == "H" else "L"
    first, last = numbering[0].sequence_index, numbering[-1].sequence_index
    return Chain(
        letter=letter,
        record=name,
        kind=_KINDS[domain.chain_type],
        sequence="".join(residue.amino_acid for residue in numbering),
        start=first + 1,
        trimmed=len(sequence) - (last + 1 - first),
        imgt=[f"{residue.position}{residue.insertion_code}" for residue in numbering],
        cdrs=_cdrs(letter, [residue.region for residue in numbering]),
        germline=_germline(domain.germline),
    )


def _cdrs(letter: str, regions: list[str]) -> dict[str, tuple[int, int]]:
    """The stretches of `regions` that are CDRs; one that has no residue is left out."""
    found = {}
    for number in "123":
        places = [place for place, region in enumerate(regions) if region == f"CDR{number}"]
        if places:
            found[letter + number] = (places[0], places[-1] + 1)
    return found


def _germline(germline: "anarcism.GermlineAssignment | None") -> str:
    if germline is None or not germline.v_gene:
        return "germline unknown"
    identity = f" ({100 * germline.v_identity:.0f} %)" if germline.v_identity else ""
    return f"{germline.v_gene}{identity}, {germline.j_gene or 'J unknown'}"


def pair(chains: list[Chain]) -> Antibody:
    """The antibody of one heavy and one light chain; refuses any other number of them."""
    heavy = [chain for chain in chains if chain.letter == "H"]
    light = [chain for chain in chains if chain.letter == "L"]
    found = ", ".join(f"`{chain.record}` ({chain.kind})" for chain in chains)
    if not light:
        _refuse(
            f"there is no light chain: found {found}",
            "this demo predicts pairs of a heavy and a light chain; single-domain antibodies (nanobodies) are not"
            " what its predictor was made for. Add the light chain as a second record",
        )
    if not heavy:
        _refuse(f"there is no heavy chain: found {found}", "add the heavy chain as a second record")
    if len(chains) > 2:
        _refuse(f"there is more than one pair: found {found}", "give one heavy and one light chain")
    return Antibody(heavy[0], light[0])


def _refuse(what: str, hint: str) -> NoReturn:
    raise UnusableInput(f"{what}; {hint}")
