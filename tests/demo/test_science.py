"""The scores are what they say they are; the properties hold for any structure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphafold_demo import scoring

SEEDS = st.integers(0, 2**32 - 1)


def cloud(seed: int, residues: int = 30) -> np.ndarray:
    """Points that lie about as close together as the Cα atoms of a protein."""
    return np.random.default_rng(seed).normal(scale=8.0, size=(residues, 3))


def rotation(seed: int) -> np.ndarray:
    """A random rotation, no mirror."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turned[:, 0] *= np.linalg.det(turned)
    return turned


@given(SEEDS)
def test_superposing_undoes_any_rotation_and_shift(seed: int) -> None:
    """A structure that was only moved has an RMSD of zero."""
    points = cloud(seed)
    moved = points @ rotation(seed + 1) + [5.0, -3.0, 40.0]
    turn, shift = scoring.superpose(points, moved)
    assert np.linalg.det(turn) == pytest.approx(1.0)
    assert scoring.rmsd(points @ turn + shift, moved) < 1e-9


@given(SEEDS)
def test_a_mirror_image_does_not_superpose(seed: int) -> None:
    """Proteins have a hand; the best rotation of a mirror image leaves a distance."""
    points = cloud(seed)
    mirrored = points * [-1.0, 1.0, 1.0]
    turn, shift = scoring.superpose(mirrored, points)
    assert scoring.rmsd(mirrored @ turn + shift, points) > 0.5


@given(SEEDS, st.floats(0.01, 3.0))
def test_no_other_rotation_is_better(seed: int, amount: float) -> None:
    """The superposition is the best one: turning further makes it worse."""
    fixed = cloud(seed)
    moving = fixed + np.random.default_rng(seed + 1).normal(scale=0.5, size=fixed.shape)
    turn, shift = scoring.superpose(moving, fixed)
    best = moving @ turn + shift
    cosine, sine = np.cos(amount), np.sin(amount)
    further = (best - best.mean(axis=0)) @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    assert scoring.rmsd(further + best.mean(axis=0), fixed) >= scoring.rmsd(best, fixed)


def test_rmsd_of_a_known_shift() -> None:
    """Every point 3 Å off along one axis and 4 along another: 5 Å."""
    points = cloud(0)
    assert scoring.rmsd(points, points + np.array([3.0, 4.0, 0.0])) == pytest.approx(5.0)


@given(SEEDS)
def test_lddt_of_the_same_structure_is_100_wherever_it_lies(seed: int) -> None:
    """The score needs no superposition."""
    points = cloud(seed)
    assert scoring.lddt(points @ rotation(seed + 1) + 17.0, points) == pytest.approx(100.0)


@given(SEEDS, st.floats(0.0, 20.0))
def test_lddt_lies_between_0_and_100(seed: int, noise: float) -> None:
    """Whatever the prediction is."""
    points = cloud(seed)
    predicted = points + np.random.default_rng(seed + 1).normal(scale=1.0, size=points.shape) * noise
    scores = scoring.lddt(predicted, points)
    assert np.all((scores >= 0) & (scores <= 100))


def test_lddt_counts_each_threshold_a_quarter() -> None:
    """A pair whose distance is off by 0.7 Å is kept within 1, 2 and 4 Å, and not within 0.5: 75."""
    reference = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]])
    predicted = np.array([[0.0, 0.0, 0.0], [6.7, 0.0, 0.0]])
    assert scoring.lddt(predicted, reference) == pytest.approx([75.0, 75.0])


def test_lddt_looks_no_farther_than_15_angstrom() -> None:
    """A residue far from all others loses nothing by being moved."""
    reference = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    predicted = reference + np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    assert scoring.lddt(predicted, reference) == pytest.approx([100.0, 100.0, 100.0])


@pytest.mark.parametrize(
    ("sequence", "reference", "expected"),
    [
        ("ACDEFGHIKL", "ACDEFGHIKL", (0, 0, 10)),
        ("ACDEFGHIKL", "CDEFGHIKL", (1, 0, 9)),
        ("CDEFGHIKL", "ACDEFGHIKLM", (0, 1, 9)),
        ("ACDEFGHIKL", "CDEFGHIKLM", (1, 0, 9)),
        ("ACDEFGHIKL", "ACDEFGHIKV", None),
        ("ACDEFGHIKL", "DEFGHIKL", None),
        ("ACDEFGHIKL", "", None),
    ],
)
def test_a_reference_is_recognized_by_its_sequence(
    sequence: str, reference: str, expected: tuple[int, int, int] | None
) -> None:
    """It may lack a few residues at the ends, and may not differ in one."""
    assert scoring.overlap(sequence, reference) == expected
