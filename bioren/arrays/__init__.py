"""Matrices of cells x genes, read in blocks: moments, affine maps, components."""
