"""The composition root: from a config to a running trainer, and back to nothing.

    materials --> cluster: join Ray, does it fit? --> placement group --> spawner: actors --> Trainer.run --> export --> nothing

What differs between a laptop and a cluster is decided here, from `config.device` and the live Ray resources.
"""
