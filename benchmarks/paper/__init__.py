"""The paper's figures and tables at CPU scale: each module here is one command, `python -m
benchmarks.paper.NAME`.
"""
