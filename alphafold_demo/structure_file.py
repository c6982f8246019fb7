"""Structures as PDB files, written with nothing but Python, so that every file says the same about itself."""

import textwrap
from pathlib import Path
from typing import NamedTuple


class Atom(NamedTuple):
    """One atom; `place` in ångström, `number` the residue's within its chain."""

    name: str
    residue: str
    chain: str
    number: int
    place: tuple[float, ...]
    b_factor: float


def write_pdb(path: Path, atoms: list[Atom], remarks: list[str]) -> Path:
    """Write `atoms` in the order they come in, chain after chain, below `remarks`; answers with the path."""
    lines = [f"REMARK   1 {line}" for remark in remarks for line in textwrap.wrap(remark, 68)]
    serial = 0
    for atom, following in zip(atoms, [*atoms[1:], None], strict=True):
        serial += 1
        lines.append(_atom_line(serial, atom))
        if following is None or following.chain != atom.chain:
            serial += 1
            lines.append(f"TER   {serial:5d}      {atom.residue:3s} {atom.chain}{atom.number:4d}")
    path.write_text("\n".join([*lines, "END"]) + "\n")
    return path


def _atom_line(serial: int, atom: Atom) -> str:
    element = atom.name.lstrip("0123456789")[0]
    name = atom.name if len(atom.name) == 4 else f" {atom.name:<3s}"
    x, y, z = atom.place
    return (
        f"ATOM  {serial:5d} {name} {atom.residue:3s} {atom.chain}{atom.number:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{1:6.2f}{atom.b_factor:6.2f}          {element:>2s}"
    )
