"""The control plane: a REST server over run directories and Ray jobs, and a client for it.

    POST /v1/jobs ------> submission: config checked, run directory made --> JobSubmissionClient
        --> `sppo-ray train` somewhere
    GET  /v1/jobs... <--- index <--- records <--- run directories            (and Ray's own list of
         jobs, polled in parallel)
    PATCH, stop... -----> control inbox in the run directory --------------> the trainer picks it up, the outcome comes back

The run directories are the only state. The server keeps nothing that it cannot read again, and
never talks to a trainer process. So it answers while a learner is busy, and can be killed at any
time.
"""  # noqa: E501, W505 (a drawing)
