"""The figure of Example 2.3 from the records of `smoothlab quadratic`; measures nothing.

    python figures/quadratic.py [--records PATTERN ...] [--out FOLDER]

Draws where one rate and two rates converge, how fast, and what zeroth order costs, and prints the verdicts.
"""

import sys
from functools import partial

from smoothlab.report.plots_quadratic import quadratic_figure
from smoothlab.report.script import figure_script
from smoothlab.report.sentences_quadratic import reading

main = partial(figure_script, __file__, "quadratic.jsonl", quadratic_figure, reading)

if __name__ == "__main__":
    sys.exit(main())
