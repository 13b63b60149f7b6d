"""`import sppo_ray`: training and evaluation from Python, on the path of the commands.

settings   recipe, config or dict, with objects and overrides --> RunConfig
waiting    calls what the command calls, also below a running event loop
train, evaluate --> run.Run, evaluate.Evaluation: what lies in the directory
"""
