"""Hessian-vector products, block norms and their trajectories."""
