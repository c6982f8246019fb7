"""What a task finds in its environment, and what a parent may do without; on every runtime."""

from __future__ import annotations

from tests.harness import MakeProject, RunLocal

WITH_IDNA = """
    channels: [conda-forge]
    dependencies:
      - python >=3.10
      - pip
      - pip:
          - idna==3.10
"""
WITH_SIX = WITH_IDNA.replace("idna==3.10", "six==1.17.0")
BARE = ["python >=3.10"]

#: The multi-environment example of Flyte's documentation: three environments chained by `depends_on`, and the workflow
#: with the parameters and the body that it has there.
FLYTE = """
    import executor as flyte

    preprocessing_env = flyte.TaskEnvironment(name="preprocessing")
    alphafold_env = flyte.TaskEnvironment(name="alphafold", depends_on=[preprocessing_env])
    viz_env = flyte.TaskEnvironment(name="visualization", depends_on=[alphafold_env])

    env = viz_env


    @preprocessing_env.task
    def preprocess_data(sequence_data):
        return sequence_data.upper()


    @alphafold_env.task
    def run_alphafold(preprocessed):
        return {"sequence": preprocessed, "plddt": [90.0] * len(preprocessed)}


    @viz_env.task
    def visualize_results(prediction):
        return f"{prediction['sequence']}: {sum(prediction['plddt']) / len(prediction['plddt'])}"


    @env.task
    def alphafold_workflow(sequence_data):
        preprocessed = preprocess_data(sequence_data)
        prediction = run_alphafold(preprocessed)
        return visualize_results(prediction)
"""

CHILD = """
    import functools

    import idna
    import idna.core as core
    from idna import encode, IDNAError

    from executor import TaskEnvironment

    child_env = TaskEnvironment("child")
    CODEC = core.ulabel


    class Failed(idna.IDNAError):
        pass


    @functools.lru_cache
    def known(name: "idna.Thing", other: idna.core = None) -> idna.IDNAError | None:
        return encode(name)


    @child_env.task
    def to_ascii(name: str) -> str:
        return known(name).decode()
"""

PARENT = """
    import idna

    from child import child_env, encode, to_ascii
    from executor import TaskEnvironment

    try:
        import six
    except ImportError:
        six = None

    parent_env = TaskEnvironment("parent", depends_on=[child_env])
    richer_env = TaskEnvironment("richer", depends_on=[child_env], extends=[child_env])


    @parent_env.task
    def convert(name: str) -> list:
        return [to_ascii(name), six is None]


    @parent_env.task
    def use(name: str) -> str:
        return encode(name)


    @richer_env.task
    def convert_here(name: str) -> list:
        return [encode(name).decode(), six is not None]
"""


def test_the_example_of_flytes_documentation_runs_as_it_is_written(
    run_local: RunLocal, project: MakeProject, runtime: str
) -> None:
    """Untyped parameters, environments chained by `depends_on`, calls through the chain."""
    names = ("preprocessing", "alphafold", "visualization")
    root = project({"workflow.py": FLYTE}, dict.fromkeys(names, BARE))
    done = run_local("alphafold_workflow", "--sequence-data", "aagg", "--json", "--runtime", runtime, cwd=root)
    assert (done.code, done.document["result"]) == (0, "AAGG: 90.0"), done.stderr
    assert {call["environment"] for call in done.document["calls"]} == set(names)


def test_a_parent_needs_none_of_its_childrens_packages(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """The parent loads modules that import what it lacks; an import that is guarded stays missing; using one is refused."""
    root = project({"child.py": CHILD, "parent.py": PARENT}, {"child": WITH_IDNA, "parent": BARE})
    done = run_local("convert", "--name", "bücher.example", "--json", "--runtime", runtime, cwd=root)
    assert (done.code, done.document["result"]) == (0, ["xn--bcher-kva.example", True]), done.stderr

    refused = run_local("use", "--name", "x", "--json", "--runtime", runtime, cwd=root)
    assert refused.code == 1
    assert refused.document["error"]["code"] == "MissingModule"
    for part in ("`idna", "environment `parent`", "extends=["):
        assert part in refused.stderr, refused.stderr


def test_a_parent_that_extends_has_the_packages_of_both(
    run_local: RunLocal, project: MakeProject, runtime: str
) -> None:
    """`extends=[child]` is one environment with the child's packages and the parent's own."""
    root = project({"child.py": CHILD, "parent.py": PARENT}, {"child": WITH_IDNA, "parent": BARE, "richer": WITH_SIX})
    done = run_local("convert_here", "--name", "bücher.example", "--json", "--runtime", runtime, cwd=root)
    assert (done.code, done.document["result"]) == (0, ["xn--bcher-kva.example", True]), done.stderr


def test_an_edit_during_a_run_changes_nothing(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Tasks run the source as it was when the run began, also those that start later."""
    root = project(
        {
            "flow.py": """
                from pathlib import Path

                from executor import TaskEnvironment

                env = TaskEnvironment("only")


                @env.task
                def late() -> str:
                    import other
                    return other.WORD


                @env.task
                def early(ready: str, go: str) -> str:
                    print("the source can be edited now", flush=True)
                    return late()
                """,
            "other.py": "WORD = 'before'\n",
        },
        {"only": BARE},
    )
    process = run_local.start("early", "--ready", "x", "--go", "y", "--runtime", runtime, "-v", cwd=root)
    assert process.stderr is not None
    assert process.stdout is not None
    for line in process.stderr:
        if "can be edited now" in line or "early" in line:
            (root / "other.py").write_text("WORD = 'after'\n")
            break
    assert process.stdout.read().strip() == "before"
    assert process.wait() == 0


def test_the_variables_of_a_specification_reach_every_task(
    run_local: RunLocal, project: MakeProject, runtime: str
) -> None:
    """Those of `variables:` and of `run-local: env:`; what the environment of a task declares wins over both."""
    flow = """
        import os

        from executor import TaskEnvironment

        env = TaskEnvironment("leaf", env_vars={"OWN": "declared"})


        @env.task
        def seen() -> list:
            return [os.environ.get(name) for name in ("OMP_SCHEDULE", "TOKENIZERS", "OWN")] + ["CONDA_PREFIX" in os.environ]
    """
    spec = """
        dependencies: [python >=3.10]
        variables: {OMP_SCHEDULE: static, OWN: spec}
        run-local: {env: {TOKENIZERS: "no"}}
    """
    done = run_local("seen", "--runtime", runtime, "--json", cwd=project({"flow.py": flow}, {"leaf": spec}))
    assert done.code == 0, done.stderr
    assert done.document["result"] == ["static", "no", "declared", True]
