"""`python -m sppo_ray`: the same command line as `sppo-ray`."""

import sys

from sppo_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
