"""Plan a study and run what is missing of it on Ray, as ``ray job submit -- python jobs/sweep.py`` does."""

import sys

from rayexp.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
