"""HybridSGD, its groups, and the seed log that replays its zeroth-order part."""
