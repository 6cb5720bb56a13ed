"""The generator: a symmetry-aware Bayesian flow network over asymmetric units."""
