"""Whose memory a value is: a limit that is in force kills nobody for what another one made."""

from __future__ import annotations

import pytest

from tests.harness import MakeProject, RunLocal

FLOW = """
    import sys

    from executor import Resources, TaskEnvironment

    image = "envs/plain/environment.yml"
    wide = TaskEnvironment("wide", image, resources=Resources(cpu=0.5, memory="1Gi"))
    narrow = TaskEnvironment("narrow", image, resources=Resources(cpu=0.5, memory="192Mi"))
    root = TaskEnvironment("root", image, depends_on=[wide, narrow], resources=Resources(cpu=0.5, memory="192Mi"))


    class Array:
        def __init__(self, data):
            self.data = memoryview(data)

        def __reduce_ex__(self, protocol):
            import pickle
            return (Array, (pickle.PickleBuffer(self.data),))


    @wide.task
    def make(size: int):
        return Array(bytearray(size))


    @narrow.task
    def read(array) -> int:
        return sum(len(bytes(array.data[at : at + 2**20])) for at in range(0, len(array.data), 2**20))


    @narrow.task
    def make_much(size: int) -> bytes:
        return bytes(size)


    @wide.task
    def use_all(size: int) -> int:
        return len(bytearray(b"x") * size)


    @root.task
    def work() -> dict:
        large = 400 * 2**20
        array = make(large)
        return {
            "read": read(array) == large,
            "again": read(array) == large,
            "next": use_all(700 * 2**20),
        }


    @root.task
    def produce() -> int:
        return size_of(make_much(110 * 2**20))


    @wide.task
    def size_of(data: bytes) -> int:
        return len(data)
"""


@pytest.mark.docker
def test_a_reader_is_not_killed_for_what_it_reads(run_local: RunLocal, project: MakeProject, engine: object) -> None:
    """Tasks of 192 MiB hand on and read 400 MiB; and the producer's next attempt has all of its memory."""
    root = project({"flow.py": FLOW}, {"plain": ["python >=3.10"]})
    done = run_local("work", "--json", "--runtime", "docker", cwd=root)
    assert done.code == 0, done.stderr
    assert done.document["result"] == {"read": True, "again": True, "next": 700 * 2**20}


@pytest.mark.docker
def test_a_producer_is_not_killed_for_its_copy(run_local: RunLocal, project: MakeProject, engine: object) -> None:
    """A value of more than half of what a task may use is no memory of two, on any of its ways."""
    root = project({"flow.py": FLOW}, {"plain": ["python >=3.10"]})
    done = run_local("produce", "--json", "--runtime", "docker", cwd=root)
    assert done.code == 0, done.stderr
    assert done.document["result"] == 110 * 2**20
