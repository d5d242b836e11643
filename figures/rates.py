"""The figure of the rates of Theorem 3.4 from the records of `smoothlab rates`; measures nothing.

    python figures/rates.py [--records PATTERN ...] [--out FOLDER]

Draws what the theorems' constants give, the counterexample, the exponents, what two rates and what reshuffling buy, and
prints the verdicts.
"""

import sys
from functools import partial

from smoothlab.report.plots_rates import rates_figure
from smoothlab.report.script import figure_script
from smoothlab.report.sentences_rates import reading

main = partial(figure_script, __file__, "rates.jsonl", rates_figure, reading)

if __name__ == "__main__":
    sys.exit(main())
