"""sam-repro: the sharpness-aware-minimization papers, reproduced.

``python -m sam_repro optimizer=layerwise k=4`` trains; ``sam_repro.optim.create`` gives the methods to any PyTorch loop.
"""

__version__ = "0.1.0"
