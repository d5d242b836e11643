"""The estimators' figure from the records of `smoothlab estimators`; measures nothing.

    python figures/estimators.py [--records PATTERN ...] [--out FOLDER]

Draws bias, variance, rounding and cost in one figure, and prints its reading.
"""

import sys
from functools import partial

from smoothlab.report.plots_estimators import estimators_figure
from smoothlab.report.script import figure_script
from smoothlab.report.sentences_estimators import reading

main = partial(figure_script, __file__, "estimators_*.jsonl", estimators_figure, reading)

if __name__ == "__main__":
    sys.exit(main())
