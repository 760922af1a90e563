"""``policy-distill simulate_statistics``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from policy_distill.commands.options.parser import Parser
from policy_distill.config import RequestError
from policy_distill.report.printing import DONE


def simulate_statistics(arguments: Sequence[str]) -> int:
    """Estimate the error rates of certificates and intervals by simulation, and print the tables of docs/statistics.md."""
    parser = Parser("simulate_statistics", simulate_statistics.__doc__)
    parser.add_argument("--replicates", type=int, default=4000, help="number of simulated students per figure")
    parser.add_display_arguments()
    options = parser.parse(arguments)
    if options.replicates < 16:
        raise RequestError(f"replicates is {options.replicates}; it must be >= 16")
    from policy_distill.evaluation.statistics.simulation import tables

    text = tables(options.replicates, (lambda line: None) if options.json else (lambda line: print(line, flush=True)))
    if options.json:
        print(json.dumps({"markdown": text}))
    return DONE
