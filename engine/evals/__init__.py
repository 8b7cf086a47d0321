"""Evals: suites as data, a runner over the workbench, statistics that know noise, comparison and gates.

suite.py -> items.py -> runner.py -> records in the store -> summary.py -> compare.py -> verdict.py -> reports/
"""
