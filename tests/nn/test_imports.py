from imported import imported_by

HEAVY = {"anndata", "matplotlib", "pandas", "scanpy", "scipy", "sklearn"}


def test_layers_import_torch_and_nothing_of_the_rest():
    modules = imported_by("import bioren.nn")
    assert modules & HEAVY == set()
    assert "torch" in modules


def test_the_check_sees_what_is_imported():
    assert "scipy" in imported_by("import scipy") & HEAVY
