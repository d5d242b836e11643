"""Algorithm 1 on synthetic objectives: a thousand replicas at once, the plain loop, exact recursions."""
