"""The composition root: builds a running trainer from a config, and cleans up after it.

    run_inputs --> cluster: join Ray, does it fit? --> actor_factory: a place for each actor
        --> worker_manager: Workers --> recovery: Trainer.run, again after a loss --> export

Differences between a laptop and a cluster are decided here, from `config.device` and the live Ray
resources.
"""
