"""Zeroth-order gradients: directions, estimators and their exact moments."""
