import json
import subprocess
import sys

HEAVY = {"anndata", "matplotlib", "pandas", "scanpy", "scipy", "sklearn"}


def imported_by(statement):
    code = f"{statement}\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_layers_import_torch_and_nothing_of_the_rest():
    modules = imported_by("import bioren.nn")
    assert modules & HEAVY == set()
    assert "torch" in modules


def test_the_check_sees_what_is_imported():
    assert "scipy" in imported_by("import scipy") & HEAVY
