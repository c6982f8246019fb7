"""What preprocessing finds in a FASTA file, and what it refuses, with a message that says why and what to do."""

import importlib
from pathlib import Path

import pytest

from tests.demo.sequences import HEAVY, LIGHT, LYSOZYME, RECEPTOR, UBIQUITIN
from tests.harness import ROOT

pytest.importorskip("anarcism", reason="it has no wheel for Python 3.10")
preprocessing = importlib.import_module("alphafold_demo.preprocessing")

SHIPPED = ROOT / "alphafold_demo" / "data" / "ede1-c10.fasta"


def fasta(**chains: str) -> str:
    """A FASTA text with one record for each argument."""
    return "".join(f">{name}\n{sequence}\n" for name, sequence in chains.items())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the test's FASTA goes."""
    return tmp_path / "input.fasta"


def test_the_shipped_antibody_is_trimmed_numbered_and_paired() -> None:
    """Linkers and tags of the construct go; the CDRs are IMGT's, with the 21 residues of its famous H3."""
    antibody = preprocessing.preprocess_data(SHIPPED)
    assert [chain.kind for chain in antibody.chains] == ["heavy", "lambda"]
    assert [(len(chain.sequence), chain.start, chain.trimmed) for chain in antibody.chains] == [
        (128, 3, 16),
        (110, 7, 44),
    ]
    first, past = antibody.heavy.cdrs["H3"]
    assert antibody.heavy.sequence[first:past] == "ARDKVDDYGDYWFPTLWYFDY"
    assert antibody.heavy.imgt[first : first + 9] == [*map(str, range(105, 112)), "111A", "111B"]
    whole = antibody.heavy.sequence + antibody.light.sequence
    first, past = antibody.cdrs()["L3"]
    assert whole[first:past] == "SSHTSRGTWV"


@pytest.mark.parametrize(
    "text",
    [
        fasta(h=HEAVY, l=LIGHT),
        fasta(l=LIGHT, h=HEAVY),
        fasta(h=HEAVY, l=LIGHT).lower(),
        fasta(h=HEAVY, l=LIGHT).replace("\n", "\r\n"),
        "\ufeff" + fasta(h=HEAVY, l=LIGHT),
        fasta(single=HEAVY + "GGGGSGGGGSGGGGS" + LIGHT),
        fasta(h=HEAVY + "ASTKGPSVFPLAPSSKSTSGGTAALGCLVKDYF", l=LIGHT + "RTVAAPSVFIFPPSDEQLKSGTASVVCLLNNFY"),
    ],
    ids=["plain", "light first", "lower case", "windows", "byte order mark", "single chain", "with constant domains"],
)
def test_the_same_antibody_however_it_is_written(file: Path, text: str) -> None:
    """Names, order, letter case, line ends and what hangs on the domains do not matter."""
    file.write_bytes(text.encode())
    antibody = preprocessing.preprocess_data(file)
    assert antibody.heavy.sequence == HEAVY
    assert antibody.light.sequence == LIGHT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`input.fasta` is empty; give a FASTA file with a heavy and a light chain"),
        (HEAVY, "`input.fasta` is not FASTA: its first line does not begin with `>`; put a line like `>heavy`"),
        (">\n" + HEAVY, "a record of `input.fasta` has no name; write a name after each `>`"),
        (fasta(h=HEAVY) * 2, "`input.fasta` holds two records named `h`; give each chain a name of its own"),
        (fasta(h="", l=LIGHT), "record `h` has no sequence; put the chain's amino acids on the lines below its name"),
        (fasta(h=HEAVY * 20), "record `h` has 2400 residues; an antibody chain has fewer than 700"),
        (fasta(h="ACGT" * 90), "record `h` looks like DNA or RNA; translate it"),
        (fasta(h=HEAVY + "X*"), "record `h` has `X` at position 121 (and 1 more), which is none of the 20 amino acids"),
        (fasta(u=UBIQUITIN), "record `u` is not an antibody chain: no variable domain was found in its 76 residues"),
        (fasta(h=HEAVY, l=LIGHT, g=LYSOZYME), "record `g` is not an antibody chain"),
        (fasta(h=HEAVY), "there is no light chain: found `h` (heavy); this demo predicts pairs"),
        (fasta(l=LIGHT), "there is no heavy chain: found `l` (kappa); add the heavy chain as a second record"),
        (fasta(h=HEAVY, i=HEAVY, l=LIGHT), "there is more than one pair: found `h` (heavy), `i` (heavy), `l` (kappa)"),
        (fasta(h=HEAVY[40:], l=LIGHT), "record `h` holds a part of a variable domain only"),
        (fasta(b=RECEPTOR, l=LIGHT), "record `b` is a chain of a T-cell receptor (type B)"),
    ],
)
def test_what_cannot_be_predicted_is_refused_with_the_reason(file: Path, text: str, message: str) -> None:
    """The message names the record, says what is wrong with it and what to do."""
    file.write_text(text)
    with pytest.raises(preprocessing.UnusableInput) as refused:
        preprocessing.preprocess_data(file)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b\x08\x00\xff", "`input.fasta` is not a text file; if it is compressed, unpack it first"),
        (b">h\n" + b"A" * 2**21, "`input.fasta` has 2.0 MiB; give a FASTA file with the two chains of one antibody"),
    ],
)
def test_what_is_no_fasta_file_at_all_is_refused(file: Path, data: bytes, message: str) -> None:
    """Before it is read as one."""
    file.write_bytes(data)
    with pytest.raises(preprocessing.UnusableInput) as refused:
        preprocessing.preprocess_data(file)
    assert str(refused.value) == message
