"""How well two structures agree, residue by residue; coordinates are arrays of shape (residues, 3), in ångström."""

import numpy as np

INCLUSION_RADIUS = 15.0
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)


def superpose(moving: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation and the shift that lay `moving` best on `fixed`: `moving @ rotation + shift`."""
    centre, target = moving.mean(axis=0), fixed.mean(axis=0)
    left, _, right = np.linalg.svd((moving - centre).T @ (fixed - target))
    proper = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])  # a mirror image is no superposition
    rotation = left @ proper @ right
    return rotation, target - centre @ rotation


def rmsd(moving: np.ndarray, fixed: np.ndarray) -> float:
    """Root mean square distance of the points as they lie; superpose them first."""
    return float(np.sqrt(((moving - fixed) ** 2).sum(axis=1).mean()))


def distances(points: np.ndarray) -> np.ndarray:
    """The distance of every point to every other."""
    apart: np.ndarray = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return apart


def lddt(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The lDDT of each residue, 0 to 100: how many of its distances within 15 Å are kept; needs no superposition.

    With Cα coordinates this is lDDT-Cα. Kept means within 0.5, 1, 2 and 4 Å, each of which counts a quarter. A residue
    that is near no other has nothing to lose, and scores 100.
    """
    wanted = distances(reference)
    off = np.abs(distances(predicted) - wanted)
    near = (wanted < INCLUSION_RADIUS) & ~np.eye(len(wanted), dtype=bool)
    kept = np.mean([off < threshold for threshold in THRESHOLDS], axis=0)
    counted = near.sum(axis=1)
    return 100 * np.where(counted, (kept * near).sum(axis=1) / np.maximum(counted, 1), 1.0)


def overlap(sequence: str, reference: str, share: float = 0.9) -> tuple[int, int, int] | None:
    """Where `reference` lies on `sequence` without a gap or a mismatch: first index in each, and how many residues.

    None where they agree over less than `share` of `sequence`: then the reference is not of this protein.
    """
    for shift in range(1 - len(reference), len(sequence)):
        first, second = max(shift, 0), max(-shift, 0)
        length = min(len(sequence) - first, len(reference) - second)
        if length >= share * len(sequence) and sequence[first : first + length] == reference[second : second + length]:
            return first, second, length
    return None
