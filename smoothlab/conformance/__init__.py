"""Is this optimizer a zeroth-order gradient? Probes that look at anybody's step from outside.

A step is given parameters and a closure. The closure sees where the loss is evaluated, and the parameters show where
the step ends: perturbations, coefficients and updates are observed without a look into the code. `PROBES` in
`smoothlab.conformance.suite` is the table of what is asked.
"""
