"""`python -m q2n`, and so `torchrun -m q2n`: the command line."""

import sys

from q2n.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
