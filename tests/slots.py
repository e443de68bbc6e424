"""What an AnnData holds, slot by slot, to see that nothing else changed."""

import hashlib

import numpy as np
from scipy import sparse
from simulation import simulate, sparse_like


def fingerprint(adata):
    """Return a digest of every slot's bytes."""

    def digest(value):
        if sparse.issparse(value):
            return digest(np.concatenate([value.data, value.indices, value.indptr]))
        if hasattr(value, "to_csv"):
            return value.to_csv()
        if isinstance(value, np.ndarray) and value.dtype != object:
            return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return repr(value)

    slots = {"X": digest(adata.X), "obs": digest(adata.obs), "var": digest(adata.var)}
    slots["raw"] = None if adata.raw is None else digest(adata.raw.X)
    for slot in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        slots |= {(slot, key): digest(value) for key, value in getattr(adata, slot).items()}
    return slots


def furnished(form=np.asarray):
    """Return an AnnData with something in every slot."""
    adata = sparse_like(simulate())
    adata.X = form(adata.X)
    adata.raw = adata.copy()
    adata.layers["other"] = form(adata.X * 2)
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.varm["PCs"] = np.ones((adata.n_vars, 2))
    adata.obsp["distances"] = sparse.eye(adata.n_obs, format="csr")
    adata.uns["note"] = "kept"
    return adata
