"""sppo-ray: Sequence-Level PPO (SPPO, arXiv 2604.08865) for reasoning models on Ray, vLLM and
DeepSpeed.
"""

__version__ = "0.1.0"
