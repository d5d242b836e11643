"""The estimators' figure from the records of `smoothlab estimators`; measures nothing.

    python figures/estimators.py [--records PATTERN ...] [--out FOLDER]

Draws bias, variance, rounding and cost in one figure, and prints its reading.
"""

import sys
from functools import partial

from smoothlab.pages.plots_estimators import estimators_figure
from smoothlab.pages.script import figure_script
from smoothlab.pages.sentences_estimators import reading

main = partial(figure_script, __file__, "estimators_*.jsonl", estimators_figure, reading)

if __name__ == "__main__":
    sys.exit(main())
