"""Potentials, relaxation, stability and matching; knows nothing of the other packages."""
