"""A treatment, or another known program, among the largest effects."""

import anndata
import numpy as np
import pandas as pd
import pytest
from simulation import simulate

import bioren
from bioren.effects.gene_programs import (
    PROGRAMS,
    leading_programs,
    names_symbols,
    program_messages,
)

OTHERS = [f"GENE{i}" for i in range(960)]
HUMAN = {
    "interferon-stimulated genes": "ISG15 IFI6 IFIT1 IFIT3 MX1 OAS1 RSAD2",
    "sex-linked genes": "XIST RPS4Y1 DDX3Y",
    "hemoglobin genes": "HBA1 HBA2 HBB",
    "mitochondrial genes": "MT-ND1 MT-CO1 MT-CO2 MT-ATP6 MT-CYB MT-ND4L",
    "ribosomal protein genes": "RPL3 RPL13A RPLP0 RPS2 RPS27A RPSA RPL36AL",
    "HLA genes": "HLA-A HLA-B HLA-DRA HLA-DPB1 CD74",
    "heat shock and dissociation genes": "FOS JUN HSPA1A HSPA1B DNAJB1 EGR1",
}
MOUSE = {
    "interferon-stimulated genes": "Isg15 Ifi27l2a Ifit1 Ifit3b Mx1 Oasl2 Rsad2",
    "sex-linked genes": "Xist Eif2s3y Ddx3y",
    "hemoglobin genes": "Hba-a1 Hba-a2 Hbb-bs",
    "mitochondrial genes": "mt-Nd1 mt-Co1 mt-Co2 mt-Atp6 mt-Cytb mt-Nd4l",
    "ribosomal protein genes": "Rpl3 Rpl13a Rplp0 Rps2 Rps27a Rpsa",
    "HLA genes": "H2-K1 H2-Aa H2-Ab1 H2-Eb1 Cd74",
    "heat shock and dissociation genes": "Fos Jun Hspa1a Hspa1b Dnajb1 Egr1",
}


def effects(special, d_special, *, seed=0):
    """Two samples whose effects are spread over all genes, but for those of special ones."""
    rng = np.random.default_rng(seed)
    genes = special.split() + OTHERS
    d = rng.normal(0, 0.4, len(genes))
    d[: len(special.split())] = d_special
    return genes, np.stack([-d, d]), np.full((2, len(genes)), 0.05)


@pytest.mark.parametrize("symbols", [HUMAN, MOUSE], ids=["human", "mouse"])
@pytest.mark.parametrize("name", [program.name for program in PROGRAMS])
def test_a_program_that_leads_is_found_and_no_other(symbols, name):
    genes, d, error = effects(" ".join(symbols.values()), 0.1)
    mine = [genes.index(symbol) for symbol in symbols[name].split()]
    d[:, mine] = [[-2.5], [2.5]]
    found = leading_programs(genes, d, error)
    assert list(found) == [name]
    assert found[name].tolist() == [True, True]


@pytest.mark.parametrize("seed", range(20))
def test_effects_on_any_genes_alike_lead_to_none(seed):
    genes, d, error = effects(" ".join(HUMAN.values()), 0, seed=seed)
    d = np.random.default_rng(seed).normal(0, 1, d.shape)
    assert leading_programs(genes, d, error) == {}


def test_small_effects_and_chance_lead_to_none():
    genes, d, error = effects(HUMAN["ribosomal protein genes"], 0.3)
    d[:, 7:] *= 0.05
    assert leading_programs(genes, d, error) == {}
    genes, d, error = effects(HUMAN["interferon-stimulated genes"], 2.5)
    assert leading_programs(genes, d, error * 50) == {}
    assert leading_programs(genes, d, np.full_like(d, np.inf)) == {}


def test_a_few_of_many_lead_to_none():
    """As ribosomal genes between two studies: three of the ten largest."""
    genes, d, error = effects(HUMAN["ribosomal protein genes"], 0.1)
    d[:, :3] = 2.5
    d[:, 20:27] = 2.5
    assert leading_programs(genes, d, error) == {}


def test_the_message_names_samples_genes_numbers_and_asks():
    genes, d, error = effects(HUMAN["interferon-stimulated genes"], 2.5)
    (message,) = program_messages(["ctrl", "stim"], genes, d, error_d=error)
    for words in (
        "interferon-stimulated genes, in 2 of 2 samples: ctrl, stim.",
        "Of the 10 genes with the largest d in stim, 7 are such: ISG15 (d = 2.50)",
        "Are these samples treated",
        "controls_key=",
    ):
        assert words in message


def test_it_is_known_whether_genes_go_by_symbols():
    assert names_symbols(HUMAN["HLA genes"].split())
    assert not names_symbols([f"ENSG{i:011}" for i in range(99)])
    # Neither are kinases, nor what begins alike.
    for symbol in ("RPS6KA1", "MTOR", "HBEGF", "FOSL2", "JUNCTION", "MT-TL1"):
        assert not names_symbols([symbol] * 9), symbol


def treated(correct):
    adata = simulate((80, 80), n_genes=200, shift=0.2)
    adata.var_names = HUMAN["interferon-stimulated genes"].split() + OTHERS[:193]
    adata.X[(adata.obs["sample"] == "b").to_numpy(), :7] += 3
    with pytest.warns(UserWarning, match=r"interferon-stimulated genes.*a, b.*Are these samples"):
        correct(adata, "sample")
    return adata


def test_a_treatment_as_the_batch_is_warned_of(correct):
    treated(correct)


def test_it_is_diagnosed():
    adata = treated(lambda adata, key: bioren.tl.integrate(adata, key, progress=False))
    assert set(bioren.tl.diagnose(adata)["leading_program"]) == {"interferon-stimulated genes"}
    plain = simulate((60, 60))
    bioren.tl.integrate(plain, "sample", progress=False)
    assert set(bioren.tl.diagnose(plain)["leading_program"]) == {""}


def log_expression(path):
    import scanpy as sc

    adata = anndata.read_h5ad(path)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


@pytest.mark.filterwarnings("ignore:.*had not been measured")  # names of genes differ
def test_on_real_data_a_treatment_is_warned_of_and_batches_are_not(real_data):
    adata = log_expression(real_data / "kang_pbmc_ctrl_stim.h5ad")
    with pytest.warns(UserWarning, match=r"interferon-stimulated.*ISG15 \(d = 2\.\d\d\)"):
        bioren.tl.integrate(adata, "batch", progress=False)
    for name in ("pancreas_5tech_panc8", "pbmc_kang_10x3k", "kang_pbmc_ctrl_8donors"):
        adata = log_expression(real_data / f"{name}.h5ad")
        bioren.pp.bridge(adata, "batch")  # warnings are errors
    half = np.random.default_rng(0).integers(2, size=adata.n_obs)
    adata.obs["half"] = pd.Categorical(np.array(["x", "y"])[half])
    bioren.pp.bridge(adata, "half")
