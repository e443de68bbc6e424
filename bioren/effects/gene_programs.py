"""Known gene programs among the largest effects: signs that what is removed is biology.

A treatment, a disease, the sex of the donors or the way a tissue was dissociated may be given as
the batch, and is then removed like one.  What differs most tells them apart: an ordinary batch
effect spreads over genes of all kinds, these lead with genes that are known for it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import hypergeom

from bioren.arrays.shapes import BoolPerGene, BoolPerSample, PerGene, Positions, SamplesByGenes
from bioren.effects.alignment import Alignment
from bioren.effects.sizes import beyond_chance
from bioren.wording import listed

__all__ = [
    "PROGRAMS",
    "GeneProgram",
    "leading_programs",
    "names_symbols",
    "program_messages",
    "warn_programs",
]

#: The genes with the largest effects are so many.  Of ten, nine are interferon-stimulated where
#: interferon was given (Kang 2018), and four at most belong to one program between five
#: technologies, two studies, eight donors or the plates of CellBench; of twenty, nine would be
#: ribosomal between the two studies.
LARGEST = 10

#: A program leads with this share of them, or of its own genes where it has fewer, ...
SHARE = 0.5

#: ... two genes at the least, ...
MIN_HITS = 2

#: ... whose median effect is no trifle, in standard deviations: HLA and ribosomal genes lead
#: between donors of one experiment, with .3.
MIN_EFFECT = 0.5

#: Chance of a false alarm in one data set, over all its samples and all programs, if the largest
#: effects fell on any genes alike (hypergeometric test, Bonferroni).
CHANCE = 0.01

#: A data set is named by gene symbols if so many genes of these programs are found.
MIN_KNOWN = 5


class GeneProgram(NamedTuple):
    """Genes that go up and down together, for a reason that is seldom technical.

    Attributes
    ----------
    name
        What they are called.
    pattern
        Matches their symbols, in capital letters: human ones, and those of mice.
    question
        What to ask where they lead.
    """

    name: str
    pattern: re.Pattern[str]
    question: str

    def find(self, genes: Sequence[str]) -> BoolPerGene:
        """Return which genes belong to the program."""
        return np.array([self.pattern.fullmatch(name.upper()) is not None for name in genes])


def _any_of(symbols: str) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, symbols.split())))


#: Short lists, each with its source.
PROGRAMS = (
    # The 21 genes of Yao et al. (2009), Hum Genomics Proteomics 2009:374312, and well expressed
    # ones of the hallmark set for interferon alpha, Liberzon et al. (2015), Cell Syst 1:417.
    GeneProgram(
        "interferon-stimulated genes",
        _any_of(
            "IFI27 IFI6 RSAD2 IFI44 IFI44L USP18 LY6E OAS1 OAS2 OAS3 SIGLEC1 ISG15 IFIT1 IFIT3 "
            "HERC5 MX1 LAMP3 EPSTI1 RTP4 PLSCR1 SPATS2L DNAPTP6 BST2 CMPK2 CXCL10 CXCL11 DDX60 "
            "HERC6 IFI35 IFIT2 IFITM1 IFITM2 IFITM3 IRF7 ISG20 OASL PARP14 SAMD9 SAMD9L "
            # Mouse genes of other names.
            "OAS1A OAS1G OASL1 OASL2 IFI27L2A IFIT1BL1 IFIT3B IFI206 IFI204 IFI209"
        ),
        "Are these samples treated, infected or ill, and is that what you study?",
    ),
    # XIST: Brown et al. (1991), Nature 349:38.  Y chromosome: Skaletsky et al. (2003), Nature
    # 423:825; of mice, Soh et al. (2014), Cell 159:800.
    GeneProgram(
        "sex-linked genes",
        _any_of(
            "XIST TSIX RPS4Y1 RPS4Y2 DDX3Y EIF1AY KDM5D UTY USP9Y ZFY TMSB4Y NLGN4Y TXLNGY TTTY14 "
            "TTTY15 PRKY EIF2S3Y UBA1Y ZFY1 ZFY2"
        ),
        "Are the donors of these samples of different sex? Then other differences between sexes "
        "are removed, too.",
    ),
    # Hardison (2012), Cold Spring Harb Perspect Med 2:a011627; mouse symbols by MGI.
    GeneProgram(
        "hemoglobin genes",
        _any_of(
            "HBA1 HBA2 HBB HBD HBE1 HBG1 HBG2 HBM HBQ1 HBZ AHSP ALAS2 HBA-A1 HBA-A2 HBA-X HBB-BS "
            "HBB-BT HBB-B1 HBB-B2 HBB-BH1 HBB-Y"
        ),
        "Are there red blood cells, or is their RNA in all droplets of these samples? Remove them, "
        "or the ambient RNA, first.",
    ),
    # The 13 proteins and two RNAs of Anderson et al. (1981), Nature 290:457.
    GeneProgram(
        "mitochondrial genes",
        re.compile(r"MT-(ND[1-6]|ND4L|CO[1-3]|ATP[68]|CYB|CYTB|RNR[12])"),
        "Are the cells of these samples damaged? Filter them by their mitochondrial share first.",
    ),
    # Nomenclature of Ban et al. (2014), Curr Opin Struct Biol 24:165.
    GeneProgram(
        "ribosomal protein genes",
        re.compile(r"RPL\d+(A|L|AL|AX)?|RPS\d+(A|X|L|Y1|Y2)?|RPLP[0-2]|RPSA"),
        "Do the cells of these samples grow, or do they differ in quality or chemistry?",
    ),
    # Robinson et al. (2020), Nucleic Acids Res 48:D948; H2 in mice.
    GeneProgram(
        "HLA genes",
        re.compile(r"HLA-[A-Z0-9]+|H2-[A-Z0-9]+|CD74|B2M"),
        "Are the cells of these samples activated, as by interferon gamma? Between donors, reads "
        "of other alleles than the reference genome's are lost, too.",
    ),
    # Van den Brink et al. (2017), Nat Methods 14:935; O'Flanagan et al. (2019), Genome Biol 20:210.
    GeneProgram(
        "heat shock and dissociation genes",
        _any_of(
            "FOS FOSB JUN JUNB JUND EGR1 ATF3 IER2 IER3 BTG2 DUSP1 NR4A1 SOCS3 ZFP36 NFKBIA "
            "PPP1R15A CEBPB CEBPD HSPA1A HSPA1B HSPA8 HSPA5 HSPB1 HSPE1 HSPD1 HSPH1 HSP90AA1 "
            "HSP90AB1 DNAJA1 DNAJB1 DNAJB4 BAG3"
        ),
        "Were these samples dissociated otherwise, warmer or longer, or kept otherwise?",
    ),
)


def leading_programs(
    genes: Sequence[str], d: SamplesByGenes, error_d: SamplesByGenes
) -> dict[str, BoolPerSample]:
    """Return in which samples a known program has the largest effects, by its name.

    Of the ten genes whose d lies furthest beyond two standard errors, half belong to it (or half
    of its genes, but two at the least, are among them), with a median of half a standard deviation;
    and so many would be there by chance in less than one of a hundred data sets.

    Parameters
    ----------
    genes
        Their symbols, of humans or mice.
    d, error_d
        Effects and their standard errors, shape ``(samples, genes)``.

    Returns
    -------
    dict
        Boolean of shape ``(samples,)`` for each program that leads anywhere.
    """
    largest = [_largest(*one) for one in zip(d, error_d, strict=True)]
    of_program = {program.name: program.find(genes) for program in PROGRAMS}
    n_known = sum(int(found.any()) for found in of_program.values())
    found = {}
    for name, member in of_program.items():
        n_members = int(member.sum())
        least = max(MIN_HITS, int(np.ceil(SHARE * min(LARGEST, n_members))))
        rare = CHANCE / (max(n_known, 1) * len(d))
        leads = np.zeros(len(d), dtype=bool)
        for sample, top in enumerate(largest):
            hits = top[member[top]]
            by_chance = hypergeom.sf(len(hits) - 1, len(genes), n_members, len(top))
            leads[sample] = (
                len(hits) >= least
                and float(np.median(np.abs(d[sample, hits]))) >= MIN_EFFECT
                and by_chance < rare
            )
        if leads.any():
            found[name] = leads
    return found


def names_symbols(genes: Sequence[str]) -> bool:
    """Return whether genes go by symbols that the programs know: else nothing can be found."""
    return sum(int(program.find(genes).sum()) for program in PROGRAMS) >= MIN_KNOWN


def program_messages(
    names: Sequence[str], genes: Sequence[str], d: SamplesByGenes, *, error_d: SamplesByGenes
) -> list[str]:
    """Say which known programs have the largest effects, in which samples, and ask.

    Parameters
    ----------
    names
        The samples.
    genes, d, error_d
        See `leading_programs`.
    """
    questions = {program.name: program for program in PROGRAMS}
    messages = []
    for name, leads in leading_programs(genes, d, error_d).items():
        program = questions[name]
        first = int(np.argmax(np.where(leads, d.max(axis=1), -np.inf)))
        top = _largest(d[first], error_d[first])
        hits = top[program.find([genes[i] for i in top])]
        examples = listed((f"{genes[i]} (d = {d[first, i]:.2f})" for i in hits), 4)
        messages.append(
            f"The largest effects are those of {name}, in {int(leads.sum())} of {len(names)} "
            f"samples: {listed(np.array(names, dtype=object)[leads])}. Of the {len(top)} genes "
            f"with the largest d in {names[first]}, {len(hits)} are such: {examples}. "
            f"{program.question} What differs between samples is removed as a batch effect. If "
            "this is to stay, take another column as the batch, such as the run or the lab; name "
            "control cells (controls_key=...), or remove less (strength=..., max_removed=(r, d))."
        )
    return messages


def warn_programs(names: Sequence[str], genes: Sequence[str], alignment: Alignment) -> None:
    """Warn of known programs that have the largest effects; see `program_messages`.

    Parameters
    ----------
    names, genes
        The samples and the genes.
    alignment
        Their effects.
    """
    error = alignment.standard_error_d
    for msg in program_messages(names, genes, alignment.d, error_d=error):
        warnings.warn(msg, stacklevel=3)


def _largest(d: PerGene, error_d: PerGene) -> Positions:
    """Return the positions of the genes whose d lies furthest beyond chance, largest first."""
    excess = np.where(np.isfinite(error_d), beyond_chance(d, error_d), 0.0)
    order = np.lexsort([-np.abs(d), -excess])[:LARGEST]
    return order[excess[order] > 0]
