"""`python -m sppo_ray`: the same command line as `sppo-ray`.

`python -m` puts the working directory first on the import path. This module moves it to the end.
Otherwise a file named torch.py in that directory would be imported instead of the installed
package.
"""

import os
import sys


def _put_working_directory_last() -> None:
    here = os.getcwd()
    # the source tree itself
    is_ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == here
    if not is_ours and sys.path and sys.path[0] in ("", here):
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    _put_working_directory_last()
    from sppo_ray.cli.main import main

    sys.exit(main())
