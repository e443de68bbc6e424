"""Names for arrays by their axes, as types: ``CellsByGenes`` is an array of cells x genes.

mypy sees `numpy.ndarray`.  As the tests run, calls are checked: the kind of number, the number
of axes, and that an axis is as long in all arguments and results of one call that name it.  An axis
called ``_`` may be of any length.  Data of a user are checked by functions of their own, whose
messages say what to do.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

# Cells.
CellsByGenes: TypeAlias = Float[np.ndarray, "cells genes"]
AnyCellsByGenes: TypeAlias = Float[Any, "cells genes"]  # an array, or one of dask
BoolCellsByGenes: TypeAlias = Bool[np.ndarray, "cells genes"]
CellsByVariable: TypeAlias = Float[np.ndarray, "cells variable"]
CellsByDims: TypeAlias = Float[np.ndarray, "cells dims"]
CellsByStates: TypeAlias = Float[np.ndarray, "cells states"]
CellsByCovariates: TypeAlias = Float[np.ndarray, "cells covariates"]
CellsByDistances: TypeAlias = Float[np.ndarray, "cells 2"]
PerCell: TypeAlias = Float[np.ndarray, "cells"]
SampleCodes: TypeAlias = Int[np.ndarray, "cells"]
LabelCodes: TypeAlias = Int[np.ndarray, "cells"]
LabelPerCell: TypeAlias = Shaped[np.ndarray, "cells"]

# Samples.
SamplesByGenes: TypeAlias = Float[np.ndarray, "samples genes"]
SamplesByStates: TypeAlias = Float[np.ndarray, "samples states"]
SamplesByStatesByGenes: TypeAlias = Float[np.ndarray, "samples states genes"]
SamplesByStatesByDims: TypeAlias = Float[np.ndarray, "samples states dims"]
SamplesByStatesByCovariates: TypeAlias = Float[np.ndarray, "samples states covariates"]
PerSample: TypeAlias = Float[np.ndarray, "samples"]
CountPerSample: TypeAlias = Int[np.ndarray, "samples"]
CountBySamplesAndGenes: TypeAlias = Int[np.ndarray, "samples genes"]
BoolPerSample: TypeAlias = Bool[np.ndarray, "samples"]
BoolSamplesByGenes: TypeAlias = Bool[np.ndarray, "samples genes"]

# Numbers of cells, and what follows from them: for all genes, or by gene where values are missing.
ByStatesOrGenes: TypeAlias = Float[np.ndarray, "samples states *by_gene"]
BySamplesOrGenes: TypeAlias = Float[np.ndarray, "samples *by_gene"]
OfStatesOrGenes: TypeAlias = Float[np.ndarray, "states *by_gene"]

# States.
StatesByGenes: TypeAlias = Float[np.ndarray, "states genes"]
StatesByDims: TypeAlias = Float[np.ndarray, "states dims"]
StatesByCovariates: TypeAlias = Float[np.ndarray, "states covariates"]
StatesByCovariatesByDims: TypeAlias = Float[np.ndarray, "states covariates dims"]
PerState: TypeAlias = Float[np.ndarray, "states"]
StateCodes: TypeAlias = Int[np.ndarray, "states"]

# Genes; the variable ones are those that the network sees.
GenesByDims: TypeAlias = Float[np.ndarray, "genes dims"]
VariableByDims: TypeAlias = Float[np.ndarray, "variable dims"]
PerGene: TypeAlias = Float[np.ndarray, "genes"]
BoolPerGene: TypeAlias = Bool[np.ndarray, "genes"]
GeneColumns: TypeAlias = Int[np.ndarray, "genes"]
VariableGenes: TypeAlias = Int[np.ndarray, "variable"]

# Dimensions of an embedding, covariates, labels, both distances of a cell.
PerDim: TypeAlias = Float[np.ndarray, "dims"]
PerCovariate: TypeAlias = Float[np.ndarray, "covariates"]
DimsByLabels: TypeAlias = Float[np.ndarray, "dims labels"]
PerLabel: TypeAlias = Float[np.ndarray, "labels"]
CountPerLabel: TypeAlias = Int[np.ndarray, "labels"]
PerDistance: TypeAlias = Float[np.ndarray, "2"]

# Of samples or of one, of cells or of states.
ByStatesByDims: TypeAlias = Float[np.ndarray, "*samples states dims"]
ByGenes: TypeAlias = Float[np.ndarray, "*samples genes"]
ByStates: TypeAlias = Float[np.ndarray, "*samples states"]
ByDims: TypeAlias = Float[np.ndarray, "*states dims"]
RowsByDims: TypeAlias = Float[np.ndarray, "rows dims"]

#: Some of the cells, genes, states or samples, by their numbers.
Positions: TypeAlias = Int[np.ndarray, "_"]
