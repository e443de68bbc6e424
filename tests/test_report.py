"""The report: what it says, that it needs nothing else, and how it works in a real browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from simulation import simulate

import bioren
from bioren.adata.record import read_effects
from bioren.effects.sizes import effect_sizes
from bioren.report.page import render
from bioren.report.warnings import warning_signs

EVIL = "<script>alert(1)</script>"


class Tables(HTMLParser):
    """The tables of a page, as lists of rows of texts; and what the page loads."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.loaded, self.scripts, self.images, self._cell = [], [], 0, [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loaded += [attrs[name] for name in ("src", "href", "srcset", "data") if name in attrs]
        self.scripts += tag == "script"
        if tag == "img":
            self.images.append(attrs)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell)
            self._cell = None


@pytest.fixture(scope="module")
def integrated(quick):
    """Three samples, one of them with a name that must be escaped."""
    adata = simulate((60, 40, 12))
    adata.obs["sample"] = adata.obs["sample"].cat.rename_categories({"b": EVIL})
    adata.obs["drug"] = np.where(adata.obs["sample"] == "a", "yes", "no")
    bioren.tl.integrate(
        adata, "sample", training=quick, progress=False, max_removed=(1.5, 0.5), n_latent=5
    )
    return adata


@pytest.fixture(scope="module")
def page(integrated):
    return render(integrated, source="cells & co.h5ad")


@pytest.fixture(scope="module")
def parsed(page):
    return Tables(page)


@pytest.fixture
def _no_pictures(monkeypatch):
    """Leave out what takes most of the time."""
    monkeypatch.setattr("bioren.report.page._image", lambda *_, **__: ("", 100))


# What it says


def test_says_what_where_when_and_how(page):
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for words in (
        "cells & co.h5ad",
        "3 samples by",
        "112 cells",
        "20 genes",
        f"bioren {bioren.__version__}",
        "d, the shift",
        "standard deviations that the gene has in the reference",
        "r, the scale",
        "it has no unit",
        "the pooled population",
        "limits on what is removed (r, d)",
        "1.5, 0.5",
        "seed",
        "--table effects.csv",
    ):
        assert words in text, words
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", text)


def test_the_tables_hold_the_effects(integrated, parsed):
    samples, genes = parsed.tables
    assert [row[0] for row in samples[1:]] == ["a", EVIL, "c"]
    assert [row[1] for row in samples[1:]] == ["60", "40", "12"]
    effects = bioren.tl.batch_effects(integrated).set_index(["sample", "gene"])
    assert len(genes) == 1 + 60  # all 20 genes of each sample, as there are few
    for sample, gene, d, error_d, r, error_r, removed, kept in genes[1:]:
        row = effects.loc[(sample, gene)]
        values = [row["d"], row["standard_error_d"], row["r"], row["standard_error_r"]]
        assert [float(text) for text in (d, error_d, r, error_r)] == pytest.approx(values, abs=6e-4)
        assert float(removed) == pytest.approx(100 * row["removed"], abs=0.06)
        assert float(kept) == pytest.approx(100 * row["kept"], abs=0.06)
    # The first of a sample is its largest shift beyond chance.
    there = effects.loc[EVIL]
    excess = there["d"].abs() - 2 * there["standard_error_d"]
    assert genes[21][:2] == [EVIL, excess.idxmax()]


def test_pictures_have_a_text_in_their_place(parsed):
    assert len(parsed.images) == 6
    for image in parsed.images:
        assert len(image["alt"]) > 20


@pytest.mark.usefixtures("_no_pictures")
def test_names_the_file_of_the_full_table(integrated):
    text = render(integrated, table="full <b>.csv")
    assert "full <b>.csv" in html.unescape(text)
    assert "full <b>.csv" not in text


def test_samples_by_several_columns_and_no_network(adata):
    adata.obs["lab"] = np.arange(120) % 2
    bioren.pp.bridge(adata, ["sample", "lab"], standardize=False, reference=["a + 0", "b + 1"])
    text = render(adata)
    for words in (
        "<b>sample + lab</b>",
        "made up of a + 0, b + 1",
        "Plain means and spreads",
        "Not checked:",
        "bioren.tl.integrate does that",
    ):
        assert words in text
    assert len(Tables(text).images) == 4  # neither embedding nor training


@pytest.mark.usefixtures("_no_pictures")
def test_a_record_that_was_stored(integrated, page, tmp_path):
    import anndata

    integrated.write_h5ad(tmp_path / "cells.h5ad")
    again = render(anndata.read_h5ad(tmp_path / "cells.h5ad"), source="cells & co.h5ad")
    assert Tables(again).tables == Tables(page).tables


def test_without_a_record(adata):
    with pytest.raises(KeyError, match="holds no batch effects"):
        render(adata)


# Warnings


def warned(adata, **options):
    effects = read_effects(adata, "bioren")
    sizes = effect_sizes(
        effects.r, effects.d, effects.standard_error_r, error_d=effects.standard_error_d
    )
    return warning_signs(adata, effects, sizes, **options)


@pytest.mark.usefixtures("_no_pictures")
def test_confounded_conditions_and_tiny_samples(integrated, page):
    found = warned(integrated, condition_key="drug")
    assert len(found) == 2
    assert "The samples of obs['sample'] are nested in obs['drug']" in found[0]
    assert "1 of 3 samples have fewer than 30 cells: c (12)" in found[1]
    with_condition = html.unescape(render(integrated, condition_key="drug"))
    for words in found:
        assert words in with_condition
    assert found[0] not in html.unescape(page)
    assert "no condition was named" in page


@pytest.mark.usefixtures("_no_pictures")
def test_the_condition_that_the_record_names(integrated):
    adata = integrated.copy()
    adata.uns["bioren"]["settings"]["condition_key"] = "drug"
    assert "are nested in" in render(adata)
    with pytest.raises(KeyError, match="did you mean 'drug'"):
        render(adata, condition_key="drgu")


def test_signs_of_over_correction(integrated):
    diagnosis = pd.DataFrame(
        {
            "overlap_before": [0.9, 0.05, 0.9],
            "overlap": [0.9, 0.8, 0.01],
            "unmatched": [0.4, 0.05, 0.0],
            "sample_specific": [0.0, 0.0, 0.3],
            "structure_removed": [0.5, 0.1, 0.1],
        }
    )
    found = " ".join(warned(integrated, diagnosis=diagnosis))
    for words in (
        "no other sample has: a (40%).",
        "than the rest of the sample does: c (30%).",
        "by themselves: a (50%)",
        f"with the others: {EVIL}. Their plain moments",
        "with the others: c. Their batch effect cannot be told",
    ):
        assert words in found


@pytest.mark.usefixtures("_no_pictures")
def test_outliers_are_named():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(6), 40)
    x = 5 + rng.normal(size=(240, 50)) + rng.normal(0, 2, 50) * (codes == 4)[:, None]
    adata = AnnData(x, obs=pd.DataFrame({"sample": codes.astype(str)}, index=map(str, range(240))))
    bioren.pp.bridge(adata, "sample", reference=["0", "1"], standardize=False)
    (message,) = warned(adata)
    assert re.search(r"stand out.*: 4 \(40 cells: shift \d\.\d\d, limit \d\.\d\d", message)
    nothing = adata[codes != 4].copy()
    bioren.pp.bridge(nothing, "sample", standardize=False)
    assert warned(nothing) == []
    assert "nothing suspicious" not in render(nothing)  # as much was not checked
    assert "None among the checks that were made" in render(nothing)


@pytest.mark.usefixtures("_no_pictures")
def test_nothing_suspicious_is_said_where_all_was_checked():
    rng = np.random.default_rng(0)
    adata = simulate((80, 80, 80, 80), n_genes=60)
    adata.var_names = ["FOS", "JUN", "EGR1", "XIST", "HBB", "ISG15", *adata.var_names[6:]]
    adata.obs["drug"] = rng.integers(2, size=adata.n_obs).astype(str)
    bioren.tl.integrate(adata, "sample", progress=False)
    assert "nothing suspicious was found" in render(adata, condition_key="drug")
    without = html.unescape(render(adata))
    assert "nothing suspicious" not in without
    assert "no condition was named (condition_key=...)" in without
    in_options = render(adata, wording=lambda text: text.replace("condition_key=...", "--this"))
    assert "no condition was named (--this)" in in_options
    adata.uns["bioren"]["genes"] = np.array([f"ENSG{i:011}" for i in range(60)], dtype=object)
    assert "do not go by symbols" in render(adata, condition_key="drug")


# One file


def test_nothing_is_loaded(page, parsed):
    assert not re.search(r"https?:|//[a-z0-9]+\.|@import|url\(", page)
    assert all(source.startswith("data:image/png;base64,") for source in parsed.loaded)
    assert "default-src 'none'" in page


def test_names_are_escaped(page, parsed):
    assert EVIL not in page
    assert html.escape(EVIL) in page
    assert parsed.scripts == 1


def test_it_stays_small_with_many_genes_and_samples():
    n_samples, n_genes = 40, 20_000
    rng = np.random.default_rng(0)
    samples = [f"sample_{i:02}" for i in range(n_samples)]
    adata = AnnData(np.ones((n_samples, 1), dtype=np.float32), obs=pd.DataFrame(index=samples))
    bioren_record = {name: rng.random((n_samples, n_genes)) for name in ("d", "removed")}
    for name in ("r", "standard_error_r", "standard_error_d"):
        bioren_record[name] = 0.5 + rng.random((n_samples, n_genes))
    bioren_record |= {
        "batch_key": "sample",
        "samples": np.array(samples, dtype=object),
        "genes": np.array([f"GENE{g}" for g in range(n_genes)], dtype=object),
        "cells": np.full(n_samples, 100),
        "settings": {"max_removed": (2.0, np.inf)},
    }
    adata.uns["bioren"] = bioren_record
    text = render(adata)
    assert len(text.encode()) < 5e6
    assert len(Tables(text).tables[1]) == 1 + 2000
    assert "2,000 rows of 800,000" in text


# In a browser

#: What a reader does, and what the page then holds.
CLICKS = """
const told = {};
const table = document.querySelector("table.filtered");
const rows = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
const column = (i) => rows().map((row) => row.cells[i].textContent);
const head = (i) => table.tHead.rows[0].cells[i];
const input = document.querySelector("input[type=search]");
const write = (text) => { input.value = text; input.dispatchEvent(new Event("input")); };
head(2).click();
told.down = column(2);
told.sort = head(2).getAttribute("aria-sort");
head(2).querySelector("button").click();
told.up = column(2);
head(1).click();
told.genes = column(1);
told.others = head(2).getAttribute("aria-sort");
write("GENE7");
told.filtered = column(1);
told.count = document.querySelector("[role=status]").textContent;
write("<script>");
told.evil = column(0);
write("");
told.all = rows().length;
told.wide = document.documentElement.scrollWidth <= window.innerWidth;
told.images = [...document.images].map((image) => image.complete && image.naturalWidth > 100);
told.requests = performance.getEntriesByType("resource")
  .filter((entry) => !entry.name.startsWith("data:")).length;
const result = document.createElement("pre");
result.id = "told";
result.textContent = JSON.stringify(told);
document.body.append(result);
"""


@pytest.fixture(scope="module")
def seen(page, tmp_path_factory):
    """What a browser told of the page at a telephone's width; its picture, and its print."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is on the path")
    folder = tmp_path_factory.mktemp("browser")
    path = folder / "page.html"
    clicks = f"<script>addEventListener('load', () => {{{CLICKS}}})</script></body>"
    path.write_text(page.replace("</body>", clicks), encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=500,900",
            "--virtual-time-budget=5000",
            f"--screenshot={folder / 'page.png'}",
            f"--print-to-pdf={folder / 'page.pdf'}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, done.stderr[-2000:]
    return json.loads(html.unescape(told[1])), folder


def test_a_click_sorts_by_number_and_by_name(seen, parsed):
    told, _ = seen
    shifts = [row[2] for row in parsed.tables[1][1:]]
    assert told["sort"] == "descending"
    assert told["down"] == sorted(shifts, key=float, reverse=True)
    assert told["up"] == sorted(shifts, key=float)
    # gene2 before gene10
    assert told["genes"] == sorted(told["genes"], key=lambda name: int(name[4:]))
    assert told["others"] is None


def test_the_filter_finds_genes_and_samples(seen):
    told, _ = seen
    assert told["filtered"] == ["gene7"] * 3
    assert told["count"] == "3 rows"
    assert told["evil"] == [EVIL] * 20
    assert told["all"] == 60


def test_the_page_fits_a_telephone_and_loads_nothing(seen):
    told, _ = seen
    assert told["wide"]
    assert told["images"] == [True] * 6
    assert told["requests"] == 0


def test_the_page_is_drawn_and_printed(seen):
    from matplotlib.image import imread

    _, folder = seen
    picture = imread(folder / "page.png")[..., :3]
    assert picture.shape[1] == 500
    assert 0.5 < picture.mean() < 0.99  # ink on white
    assert (folder / "page.pdf").read_bytes().startswith(b"%PDF")


def test_cells_are_drawn_by_the_embedding_whatever_its_name(quick):
    adata = simulate((60, 40, 12))
    bioren.tl.integrate(adata, "sample", key_added="X_joined", training=quick, progress=False)
    assert "The cells before and after" in render(adata)


def test_sections_are_named_for_screen_readers(page):
    headings = set(re.findall(r'<h2 id="(\w+)"', page))
    assert headings <= set(re.findall(r'<section aria-labelledby="(\w+)"', page))
    assert len(headings) > 3
