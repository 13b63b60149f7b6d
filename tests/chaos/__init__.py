"""Faults injected into real runs: `python -m tests.chaos` (the matrix) and `python -m
tests.chaos.soak`.

cells.py    which role, in which state, by which fault      run.py      a training run as a process,
                                                            and what it says
states.py   how a state is brought about and recognised     record.py   what its files prove: lost,
                                                            repeated, wrong
strike.py   freeze, look again, kill                        matrix.py   cell after cell, from fault
                                                            to healing
"""
