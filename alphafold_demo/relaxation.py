"""A predicted structure made physically sound: bonds of the right length, no clashes, hydrogens, almost no movement.

As AlphaFold 2 does it: minimised in a molecular-mechanics force field while every heavy atom is held near its place.
Without solvent: the restraints decide where atoms end, and an implicit solvent would cost thirty times as long.
"""

import itertools
import random
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from alphafold_demo.structure_file import Atom, write_pdb

RESTRAINT = 4184.0  # kJ/mol/nm², AlphaFold 2's 10 kcal/mol/Å²
TOLERANCE = 100.0  # kJ/mol/nm; a tenth of it takes three times as long, for geometry that is no better
THREADS = 1  # with more, OpenMM adds up forces in the order in which they come, and no two results are the same
CLASH = 2.0  # Å between heavy atoms that are at least two residues apart


def relax_structure(structure: Path, plddt: list[float], remarks: list[str]) -> tuple[Path, dict[str, float]]:
    """Relax a PDB file of complete heavy atoms into relaxed.pdb; answers with its path and what changed.

    One machine comes to the same atoms each time.

    The facts: `energy_before`, `energy_after` (kJ/mol, with restraints), `shortest_peptide_bond_before`, `…_after` and
    `longest_peptide_bond_before`, `…_after` (Å), `clashes_before`, `…_after`, and `moved` (Å, RMSD of heavy atoms).
    """
    given = app.PDBFile(str(structure))
    before = _geometry(given.topology, _in_angstrom(given.positions))
    simulation = _prepare(given)
    energy_before = _energy(simulation)
    simulation.minimizeEnergy(tolerance=TOLERANCE)
    topology = simulation.topology
    places = _in_angstrom(simulation.context.getState(positions=True).getPositions())
    remarks = [*remarks, "Relaxed with OpenMM (amber14, restrained)"]
    path = write_pdb(Path("relaxed.pdb"), _atoms(topology, places, plddt), remarks)
    after = _geometry(topology, places)
    facts = {f"{name}_before": value for name, value in before.items()}
    facts |= {f"{name}_after": value for name, value in after.items()}
    facts |= {"energy_before": energy_before, "energy_after": _energy(simulation)}
    facts["moved"] = _moved(given, topology, places)
    return path, {name: round(value, 3) for name, value in facts.items()}


def _prepare(given: app.PDBFile) -> app.Simulation:
    """The structure with hydrogens, in the force field, each heavy atom tied to its place."""
    field = app.ForceField("amber14/protein.ff14SB.xml")
    model = app.Modeller(given.topology, given.positions)
    platform = openmm.Platform.getPlatform("CPU")
    platform.setPropertyDefaultValue("Threads", str(THREADS))
    random.seed(0)  # OpenMM puts new hydrogens at random places before it minimises them
    model.addHydrogens(field, pH=7.0, platform=platform)
    system = field.createSystem(model.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    tie = openmm.CustomExternalForce("0.5 * k * ((x-x0)^2 + (y-y0)^2 + (z-z0)^2)")
    tie.addGlobalParameter("k", RESTRAINT)
    for name in ("x0", "y0", "z0"):
        tie.addPerParticleParameter(name)
    for atom, place in zip(model.topology.atoms(), model.positions, strict=True):
        if atom.element.symbol != "H":
            tie.addParticle(atom.index, place.value_in_unit(unit.nanometer))
    system.addForce(tie)
    simulation = app.Simulation(model.topology, system, openmm.VerletIntegrator(0.001), platform)
    simulation.context.setPositions(model.positions)
    return simulation


def _energy(simulation: app.Simulation) -> float:
    energy = simulation.context.getState(energy=True).getPotentialEnergy()
    return float(energy.value_in_unit(unit.kilojoules_per_mole))


def _in_angstrom(positions: unit.Quantity) -> np.ndarray:
    return np.array(positions.value_in_unit(unit.angstrom))


def _atoms(topology: app.Topology, places: np.ndarray, plddt: list[float]) -> list[Atom]:
    return [
        Atom(
            atom.name,
            atom.residue.name,
            atom.residue.chain.id,
            int(atom.residue.id),
            tuple(map(float, places[atom.index])),
            plddt[atom.residue.index],
        )
        for atom in topology.atoms()
    ]


def _geometry(topology: app.Topology, places: np.ndarray) -> dict[str, float]:
    """The extremes of the peptide bonds, and how many pairs of heavy atoms are too close."""
    named = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms()}
    bonds = [
        np.linalg.norm(places[named[here.index, "C"]] - places[named[following.index, "N"]])
        for chain in topology.chains()
        for here, following in itertools.pairwise(chain.residues())
    ]
    heavy = [atom for atom in topology.atoms() if atom.element.symbol != "H"]
    xyz = places[[atom.index for atom in heavy]]
    residue = np.array([atom.residue.index for atom in heavy])
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    apart = residue[None] - residue[:, None] > 1
    sulfur = np.array([atom.element.symbol == "S" for atom in heavy])
    bridge = sulfur[:, None] & sulfur[None]
    return {
        "shortest_peptide_bond": float(min(bonds)),
        "longest_peptide_bond": float(max(bonds)),
        "clashes": float(np.sum((distance < CLASH) & apart & ~bridge)),
    }


def _moved(given: app.PDBFile, topology: app.Topology, places: np.ndarray) -> float:
    """How far the heavy atoms went, in Å: their root mean square displacement."""
    start = dict(zip(_names(given.topology), _in_angstrom(given.positions), strict=True))
    end = dict(zip(_names(topology), places, strict=True))
    shifts = np.array([end[name] - place for name, place in start.items()])
    return float(np.sqrt((shifts**2).sum(axis=1).mean()))


def _names(topology: app.Topology) -> list[tuple[int, str]]:
    return [(atom.residue.index, atom.name) for atom in topology.atoms()]
